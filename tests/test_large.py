"""Large students of frugal: one alone asks as it comes and learns, fewer batches than small ones would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, priors
from dualstudent.checkpoint import Snapshots
from dualstudent.errors import Stopped
from dualstudent.ledger import Account
from dualstudent.methods import Frugal
from dualstudent.methods.base import cosine, pace
from dualstudent.methods.frugal import CHUNK
from dualstudent.methods.game import Learners
from dualstudent.methods.worth import worth
from dualstudent.muon import for_two
from dualstudent.networks import lighter, work
from dualstudent.oracle import Oracle
from test_contract import same


def test_larger_networks_learn_fewer_batches() -> None:
    assert lighter("lenet5", (1, 28, 28)) == lighter("lenet5", (1, 64, 64)) == 1
    assert lighter("resnet8", (3, 32, 32)) == pytest.approx(6e6 / work("resnet8", (3, 32, 32)))
    assert lighter("resnet18", (3, 32, 32)) == 1 / 16
    assert lighter("torch:some.module:factory", (3, 32, 32)) == 1


@pytest.mark.parametrize(
    ("student", "students", "number"),
    [("lenet5", 0, 2), ("resnet8", 0, 1), ("resnet8", 2, 2), ("lenet5", 1, 1), ("lenet5", 3, 3)],
)
def test_a_large_student_is_alone_unless_more_are_wanted(student: str, students: int, number: int) -> None:
    state = Frugal(student=student, students=students).init(ds.Spec((3, 32, 32), 4))
    assert [len(state.students.members), len(state.clone.students)] == [number, number]
    assert state.clone.arch == student


@pytest.mark.parametrize("access", [ds.Access.PROBS, ds.Access.LABEL])
@pytest.mark.parametrize("stop_at", [2, 8])
def test_a_stopped_run_of_one_student_goes_on_bit_for_bit(
    access: ds.Access, stop_at: int, linear: Callable[..., Linear], tmp_path: Path
) -> None:
    """Stopped while it asks, and while it learns what was asked; the number of classes is unknown."""
    classes = None if access == ds.Access.LABEL else 4
    method = Frugal(student="digits-cnn", students=1, batch=8, learnt=8, compute_least=64, max_classes=6)
    target, options = linear(access=access, classes=classes), {"budgets": [40]}
    whole = engine.run(method, target, Account("attack", 40), **options)  # type: ignore[arg-type]
    account, snapshots = Account("attack", 40), Snapshots(tmp_path / "s.pt", "x", 1e9)
    with pytest.raises(Stopped):
        engine.run(
            method, target, account, budgets=[40], snapshots=snapshots, watch=lambda m: m.step == stop_at
        )
    resumed = engine.run(method, target, account, budgets=[40], snapshots=snapshots)
    assert same(whole, resumed)
    with torch.no_grad():
        logits = whole.clone.eval()(torch.rand(4, 1, 8, 8))
    assert logits.isfinite().all()
    unseen = 0 if access == ds.Access.PROBS else 6 - int((whole.memory.classes() > 0).sum())
    assert (logits < -1000).sum() == 4 * unseen


@pytest.mark.parametrize(
    ("students", "candidates", "drawn"), [(2, 0, 6), (1, 0, 1), (3, 0, 6), (1, 4, 4), (2, 1, 1)]
)
def test_one_alone_asks_what_comes_unless_told(
    students: int, candidates: int, drawn: int, linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nobody to disagree with. At first nobody chooses."""
    counts: list[int] = []
    broad = priors.broad

    def counted(count: int, *rest: Any) -> torch.Tensor:
        counts.append(count)
        return broad(count, *rest)

    monkeypatch.setattr(priors, "broad", counted)
    options = {"student": "digits-cnn", "students": students, "candidates": candidates, "blind": 0.5}
    method = Frugal(**options, batch=8, learnt=8, compute_least=8)  # type: ignore[arg-type]
    engine.run(method, linear(), Account("attack", 32), budgets=[32])
    assert counts == [8, 8, 8 * drawn, 8 * drawn]


@pytest.mark.parametrize("students", [1, 2])
@pytest.mark.parametrize(
    ("common", "rare", "acts"), [(95, 5, True), (89, 11, False), (100, 0, False), (14, 1, False)]
)
def test_who_asks_what_comes_looks_near_rare_answers_too(
    students: int, common: int, rare: int, acts: bool, linear: Callable[..., Linear]
) -> None:
    """Where one class is nearly all of many answers, a half of what is asked next blends into the others."""
    spec = linear().spec
    method = Frugal(student="digits-cnn", students=students)
    state = method.init(spec)
    state.memory.add(torch.zeros(common + rare, *spec.shape), torch.eye(4)[[0] * common + [1] * rare])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(priors, "broad", lambda count, shape, device: torch.ones(count, *shape))
        x = method.chosen(state, spec, 8, 1)
    assert (x[1::2] == x[1, 0, 0, 0]).all()
    assert (x[::2].flatten(1).mean(1) < x[1, 0, 0, 0]).all() == acts


def test_who_is_alone_disagrees_with_nobody() -> None:
    """Worth what it is to two who see the same."""
    logits, classes = torch.randn(1, 9, 4), torch.tensor([5.0, 1.0, 1.0, 3.0])
    alone = worth(logits, classes, sure=2.0, doubtful=1.0)
    assert alone.isfinite().all()
    assert alone.std() > 0
    torch.testing.assert_close(alone, worth(logits.expand(2, 9, 4), classes, sure=2.0, doubtful=1.0))


def test_a_large_student_learns_all_answers_several_times() -> None:
    """A ResNet-18, whose share of batches is the least: 2.5 times at a large budget, with the defaults."""
    method = Frugal()
    after = sum(phase.steps for phase in method.phases(1_000_000) if phase.name in ("after", "calm"))
    share = lighter("resnet18", (3, 32, 32))
    seen = after * CHUNK * share * for_two(share * method.compute * 1_000_000) * method.learnt
    assert seen / 1_000_000 == pytest.approx(2.53, abs=0.01)


@pytest.mark.parametrize(
    ("students", "budget", "own"),
    [
        (2, 320_000, 7_000),
        (1, 320_000, 14_000),
        (1, 720_000, 21_000),
        (1, 1_280_000, 28_000),
        (1, 2_560_000, 56_000),
    ],
)
def test_a_large_student_learns_its_part_at_the_rates_for_so_few(
    students: int, budget: int, own: int, linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sixteenth of the batches; if it is alone twice as many, beyond 7,000 as their root, until that is no
    more. The rates are set once for each step.
    """
    target = linear(shape=(3, 16, 16))
    method = Frugal(student="resnet18", students=students, batch=8, learnt=2, after=0.5, rate=0.01)
    state, oracle = method.init(target.spec), Oracle(target, Account("attack"))
    state.memory.add(torch.rand(8, 3, 16, 16), torch.rand(8, 4).softmax(1))
    counts: list[int] = []
    state.students.members[0].register_forward_pre_hook(lambda *_: counts.append(1))
    total = 0.35 * budget
    phases = {phase.name: phase for phase in method.phases(budget)}
    pace(state, 1.0)
    method.learn(state, oracle, total, 16)
    assert abs(len(counts) - 16 * own / total) < 1  # what is no whole number of batches is left to chance
    monkeypatch.setattr("dualstudent.methods.frugal.CHUNK", 16)
    for name, falls in (("blind", 1.0), ("after", cosine(0.5))):
        for _ in range(2):
            counts.clear()
            pace(state, phases[name].schedule(0.0))
            phases[name].step(state, oracle)
            assert rates(state) == pytest.approx([0.01 * (7000 / own) ** 0.5 * falls] * 2)
    assert abs(len(counts) - 16 * own / total) < 1


def rates(state: Learners) -> list[float]:
    return [group["lr"] for group in state.student_descent.param_groups]
