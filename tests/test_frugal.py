"""Frugal: what it plans, and which images it chooses."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, parallel
from dualstudent.cli import main
from dualstudent.experiment.recorder import evaluation_steps
from dualstudent.ledger import Account
from dualstudent.methods import Frugal
from dualstudent.methods.base import pace
from dualstudent.methods.frugal import CHUNK
from dualstudent.methods.worth import worth
from dualstudent.muon import Muon
from dualstudent.oracle import Oracle


@pytest.mark.parametrize("budget", [2, 10, 64, 100, 1000, 3000])
def test_what_is_learnt_follows_the_budget(
    budget: int, linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it between the queries, the rest after the last, and no step is longer than its share."""
    method, account, at = Frugal(student="digits-cnn", compute_least=400), Account("attack", budget), []

    def learn(*_: object) -> tuple[Tensor, Tensor]:
        at.append(account.spent)
        return torch.zeros(()), torch.randn(2, 128, 4)

    monkeypatch.setattr("dualstudent.methods.frugal.learn", learn)
    each = [0]
    engine.run(
        method,
        linear(),
        account,
        budgets=[budget],
        watch=lambda moment: each.append(len(at)) or False,  # type: ignore[func-returns-value]
    )
    wanted, asking = max(method.compute * budget, 400), math.ceil(budget / 64)
    assert len(at) == pytest.approx(wanted, abs=asking + CHUNK)
    assert max(b - a for a, b in itertools.pairwise(each)) <= max(CHUNK, 0.2 * wanted / asking + 1)
    after = [p for p in engine.plan(method, [budget]) if p.name in ("after", "calm")]
    assert sum(p.steps for p in after) * CHUNK == pytest.approx(0.8 * wanted, abs=CHUNK)
    blind = [p.steps * p.cost for p in engine.plan(method, [budget]) if p.name == "blind"]
    assert 0 <= method.blind * budget - sum(blind) < 64


@pytest.mark.parametrize(
    ("budget", "batch", "each"),
    [(64_999, 0, 64), (65_000, 0, 65), (200_000, 0, 200), (9_000_000, 0, 256), (9_000_000, 16, 16)],
)
def test_of_a_large_budget_more_is_asked_at_a_time(budget: int, batch: int, each: int) -> None:
    """Drawing a few candidates takes nearly as long as many. Nobody is overruled who says how many."""
    plan = engine.plan(Frugal(batch=batch), [budget])
    assert {p.cost for p in plan if p.name in ("blind", "steps")} == {each}
    assert sum(p.steps * p.cost for p in plan) == budget
    plan = engine.plan(Frugal(batch=batch, memory=100), [budget])
    assert max(p.cost for p in plan) <= 98, "what is asked at a time has to fit into the memory"


def test_an_extension_by_little_learns_as_much_as_a_small_run() -> None:
    method = Frugal()
    more = engine.plan(method, [1000, 1002])[len(engine.plan(method, [1000])) :]
    assert [(p.name, p.cost) for p in more] == [("rest", 2), ("after", 0), ("calm", 0)]


def test_rates_fall_along_one_cosine_over_all_phases() -> None:
    method, seen = Frugal(batch=8, compute_least=400, after=0.5), []
    phases = engine.plan(method, [400])
    for phase in phases:
        seen += [phase.schedule(i / phase.steps) for i in range(phase.steps)]
    assert seen[0] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(seen))
    assert seen[-1] < 0.05
    turn = next(p for p in phases if p.name == "after")
    assert turn.schedule(0.0) == pytest.approx(0.5)


@pytest.mark.parametrize("calm", [0.0, 0.2, 0.99])
@pytest.mark.parametrize("least", [1, 20, 400])
def test_a_phase_has_steps(calm: float, least: int) -> None:
    """A plan times a step of each; what is learnt after the last query is the same."""
    phases = Frugal(calm=calm, compute=0.0, compute_least=least).phases(64)
    assert all(phase.steps > 0 for phase in phases)
    learning = [phase.steps for phase in phases if not phase.cost]
    assert sum(learning) == max(1, round(0.8 * least / CHUNK))


@pytest.mark.parametrize("students", [1, 2])
def test_statistics_rest_at_last(students: int, linear: Callable[..., Linear]) -> None:
    """Those of BatchNorm; a longer run moves them again."""
    method = Frugal(student="digits-cnn", students=students, batch=8, learnt=8, compute_least=200)
    names = [p.name for p in engine.plan(method, [32, 64]) for _ in range(p.steps)]
    seen: list[list[torch.Tensor]] = []

    def watch(moment: engine.Moment[Any]) -> bool:
        means = [v for k, v in moment.state.students.state_dict().items() if k.endswith("running_mean")]
        seen.append([mean.clone() for mean in means])
        return False

    engine.run(method, linear(), Account("attack", 64), budgets=[32, 64], watch=watch)
    moved: dict[str, list[bool]] = {}
    for name, before, (old, new) in zip(names[1:], names, itertools.pairwise(seen), strict=False):
        if name == before:
            moved.setdefault(name, []).extend(not torch.equal(*pair) for pair in zip(old, new, strict=True))
    assert all(moved["after"])
    assert len(moved["calm"]) > 8
    assert not any(moved["calm"])


def test_choosing_leaves_the_students_as_they_were(linear: Callable[..., Linear]) -> None:
    """With their statistics: thousands of candidates must not move them."""
    target, method = linear(), Frugal(student="digits-cnn", batch=8, compute_least=8, blind=0.5)
    state = engine.run(method, target, Account("attack", 32), budgets=[32])
    before = {name: value.clone() for name, value in state.students.state_dict().items()}
    method.chosen(state, target.spec, 8, 4)
    assert all(torch.equal(value, before[name]) for name, value in state.students.state_dict().items())


def test_classes_that_were_not_seen_count_for_nothing(linear: Callable[..., Linear]) -> None:
    target = linear(classes=None, access=ds.Access.LABEL)
    method = Frugal(student="digits-cnn", batch=8, compute_least=8, max_classes=20)
    state = engine.run(method, target, Account("attack", 40), budgets=[40])
    counts = state.memory.classes()
    assert counts.sum() == 40
    x = torch.rand(16, 1, 8, 8)
    state.students.eval()
    with torch.no_grad():
        assert worth(state.students(x), counts, 2.0, 1.0).isfinite().all()


def test_parts_of_a_batch_are_learnt_in_the_long_run() -> None:
    torch.manual_seed(0)
    drawn = [parallel.whole(2.3) for _ in range(2000)]
    assert set(drawn) == {2, 3}
    assert sum(drawn) / 2000 == pytest.approx(2.3, abs=0.05)
    assert {parallel.whole(4.0) for _ in range(50)} == {4}


@pytest.mark.parametrize(
    ("shape", "arch"),
    [((1, 8, 8), "digits-cnn"), ((1, 28, 20), "lenet5"), ((3, 32, 32), "resnet8"), ((1, 64, 64), "resnet8")],
)
def test_a_student_suits_the_images(shape: tuple[int, int, int], arch: str) -> None:
    assert Frugal().init(ds.Spec(shape, 10)).students.arch == arch


@pytest.mark.parametrize(("budget", "share"), [(1000, 1.0), (20_000, 1.0), (80_000, 0.5), (320_000, 0.25)])
def test_who_learns_longer_learns_at_lower_rates(budget: int, share: float) -> None:
    """Above 7,000 batches, by the root of how many more; down to zero in the end."""
    first, *_, last = Frugal().phases(budget)
    assert first.schedule(0.0) == pytest.approx(share)
    assert last.schedule(1.0) == pytest.approx(0.0)
    rates = [p.schedule(i / p.steps) for p in Frugal().phases(budget) for i in range(p.steps)]
    assert all(a >= b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize(("access", "batches"), [(ds.Access.PROBS, 240), (ds.Access.LABEL, 80)])
def test_few_labels_are_not_learnt_for_ever(
    access: ds.Access, batches: int, linear: Callable[..., Linear]
) -> None:
    """64 times at most after the last query: 1,000 labels were learnt by heart, and 12 points lost."""
    target = linear(access=access)
    method = Frugal(student="digits-cnn", compute_least=300, learnt=8)
    state, oracle = method.init(target.spec), Oracle(target, Account("attack"))
    state.memory.add(torch.rand(10, 1, 8, 8), torch.eye(4)[torch.arange(10) % 4])
    counts = []
    state.students.members[0].register_forward_pre_hook(lambda *_: counts.append(1))
    for phase in method.phases(10)[-2:]:
        for _ in range(phase.steps):
            phase.step(state, oracle)
    assert len(counts) == pytest.approx(batches, abs=12)


@pytest.mark.parametrize("access", list(ds.Access))
def test_students_learn_any_answers_by_muon(access: ds.Access, linear: Callable[..., Linear]) -> None:
    method = Frugal(student="digits-cnn", rate=0.02)
    state = method.init(linear(access=access).spec)
    assert isinstance(state.student_descent, Muon)
    assert {group["lr"] for group in state.student_descent.param_groups} == {0.02}


def test_rates_are_set_by_the_engine(linear: Callable[..., Linear]) -> None:
    state = Frugal(student="digits-cnn", rate=0.01).init(linear().spec)
    pace(state, 0.5)
    assert state.student_descent.param_groups[0]["lr"] == pytest.approx(0.005)


def test_the_learning_after_the_last_query_is_shown(
    digits_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line when all is asked, not one for each step after it, and how far the learning is."""
    words = ["--target", str(digits_target), "--queries", "64", "--compute-least", "80", "--points", "1"]
    assert main(["extract", "frugal", *words, "--out", str(tmp_path / "run")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "/" in line]
    parts = [line.split(" ")[:3] for line in said]
    assert parts[0] == ["extracting:", "64/64", "queries"]
    assert parts[-1] == ["learning:", "9/9", "steps,"]
    assert len(parts) < 6, "a line now and then"


def test_evaluations_spread_over_the_queries_not_over_the_learning_after() -> None:
    phases = engine.plan(Frugal(), [6400])
    steps = sorted(evaluation_steps(phases, 20))
    asking = [step for step in steps if step <= 100]
    assert {5 * i for i in range(1, 21)} <= set(asking), "a hundred steps that ask, twenty points"
    assert {1, 3, 6, 12} <= set(asking), "denser at the start"
    after = phases[-2].steps + phases[-1].steps
    assert [step - 100 for step in steps if step > 100] == [
        after - 3 * after // 4,
        after - after // 2,
        after - after // 4,
        after,
    ]


@pytest.mark.parametrize("access", [ds.Access.LABEL, ds.Access.PROBS])
def test_only_labels_are_learnt_on_images_with_noise(
    access: ds.Access, linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def learn(pupils: object, loss: object, x: Tensor, answer: Tensor, calm: bool) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return torch.zeros(()), torch.randn(2, len(x), 4)

    monkeypatch.setattr("dualstudent.methods.frugal.learn", learn)
    method = Frugal(student="digits-cnn", compute_least=40)
    engine.run(method, linear(access=access), Account("attack", 128), budgets=[128])
    levels = 255 * torch.cat(seen)
    off = (levels - levels.round()).abs().max().item()
    assert off > 0.4 if access == ds.Access.LABEL else off < 1e-3
