"""Frugal: what it plans, and which images it chooses."""

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, parallel
from dualstudent.checkpoint import Snapshots
from dualstudent.cli import main
from dualstudent.errors import Stopped
from dualstudent.experiment.recorder import evaluation_steps
from dualstudent.ledger import Account
from dualstudent.memory import Memory
from dualstudent.methods import Frugal
from dualstudent.methods.base import cosine, pace
from dualstudent.methods.frugal import CHUNK
from dualstudent.methods.learners import Learners, Scouts
from dualstudent.methods.monitor import evenness, renew
from dualstudent.methods.worth import worth
from dualstudent.muon import Muon
from dualstudent.networks import lighter, scouting, smallest, work
from dualstudent.oracle import Oracle
from test_contract import same


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
    wanted, asking = max(method.compute * budget, 400), math.ceil(budget / method.batch)
    assert len(at) == pytest.approx(wanted, abs=asking + CHUNK)
    assert max(b - a for a, b in itertools.pairwise(each)) <= max(CHUNK, 0.2 * wanted / asking + 1)
    after = [p for p in engine.plan(method, [budget]) if p.name == "after"]
    assert sum(p.steps for p in after) * CHUNK == pytest.approx(0.8 * wanted, abs=CHUNK)
    blind = [p.steps * p.cost for p in engine.plan(method, [budget]) if p.name == "blind"]
    assert 0 <= method.blind * budget - sum(blind) < method.batch


def test_an_extension_by_little_learns_as_much_as_a_small_run() -> None:
    method = Frugal()
    more = engine.plan(method, [1000, 1002])[len(engine.plan(method, [1000])) :]
    assert [(p.name, p.cost) for p in more] == [("rest", 2), ("after", 0)]


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


def test_choosing_leaves_the_students_as_they_were(linear: Callable[..., Linear]) -> None:
    """In training mode, with their statistics: thousands of candidates must not move them."""
    target, method = linear(), Frugal(student="digits-cnn", batch=8, compute_least=8, blind=0.5)
    state = engine.run(method, target, Account("attack", 32), budgets=[32])
    assert all(module.training for module in state.students.modules())
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


def test_a_student_that_sees_nothing_starts_afresh(
    linear: Callable[..., Linear], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Dead from the start, as a rate too high would leave it: renewed, warned of, and told in the result."""
    method = Frugal(student="lenet5", batch=8, compute_least=16, after=0.5)
    target = linear(shape=(1, 12, 12), classes=10)
    dead = method.init(target.spec)
    for weight in dead.students.members[0].parameters():
        weight.data.zero_()
    living = [weight.clone() for weight in dead.students.members[1].parameters()]
    dead.memory.add(torch.rand(8, *target.spec.shape), torch.eye(10)[torch.arange(8)])
    logits = dead.students(torch.rand(4, *target.spec.shape)).detach()
    assert renew(dead, logits, torch.eye(10)[:1].expand(4, -1)) == 0, "all answers alike: it may be right"
    assert renew(dead, logits, torch.eye(10)[:4]) == 1
    assert all(weight.std() > 0 for weight in dead.students.members[0].parameters() if weight.ndim > 1)
    assert all(map(torch.equal, dead.students.members[1].parameters(), living))

    class Dead(Frugal):
        def init(self, spec: ds.Spec) -> Learners:
            state = super().init(spec)
            for weight in state.students.members[0].parameters():
                weight.data.zero_()
            return state

    run = ds.extract(Dead(**vars(method)), target, queries=64, out=tmp_path / "run", device="cpu")
    assert "a student saw nothing, or just what another saw: it got fresh weights" in caplog.text
    [flag] = [flag for flag in run.result["flags"] if flag["name"] == "collapse"]
    assert "1 times a student saw nothing" in flag["text"]


def test_a_student_that_sees_what_another_sees_starts_afresh(
    linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a network of others comes with the same weights each time; who differs is left alone."""
    method = Frugal(student="digits-cnn", compute_least=64, students=3)
    state, target = method.init(linear(classes=10).spec), linear(classes=10)
    first, twin, other = state.students.members
    twin.load_state_dict(first.state_dict())
    monkeypatch.setattr("dualstudent.networks.ensemble.classifier", lambda *_: copy.deepcopy(first))
    kept = copy.deepcopy(other.state_dict())
    state.memory.add(torch.rand(8, *target.spec.shape), torch.eye(10)[torch.arange(8)])
    assert method.learn(state, Oracle(target, Account("attack")), 1)["renewed"] == 1
    logits = state.students(torch.rand(8, *target.spec.shape)).detach()
    assert renew(state, logits, torch.eye(10)[:8]) == 0
    assert (logits[1] - logits[0]).abs().max() > 1e-3
    assert sum(torch.equal(kept[k], v) for k, v in other.state_dict().items()) < len(kept), "it learns"


def test_evenness_counts_the_classes_that_there_are() -> None:
    four = torch.tensor([5.0, 5.0, 5.0, 5.0] + [0.0] * 12)
    assert float(evenness(four)) == pytest.approx(0.5)
    assert float(evenness(four, known=False)) == pytest.approx(1.0)
    assert float(evenness(torch.tensor([7.0, 0.0]), known=False)) == 0.0


def test_answers_of_one_class_are_told(
    linear: Callable[..., Linear], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class One(Linear):
        def __call__(self, x: Tensor, /) -> Tensor:
            return torch.eye(10)[:1].expand(len(x), -1)

    method = Frugal(student="digits-cnn", compute=0.01, compute_least=1, batch=128)
    run = ds.extract(method, One(ds.Spec((1, 8, 8), 10)), queries=1024, out=tmp_path / "run", device="cpu")
    assert caplog.text.count("100 % of all answers are of one class") == 1
    [flag] = [flag for flag in run.result["flags"] if flag["name"] == "collapse"]
    assert not flag["ok"]


class Bright(Linear):
    """Answers class 1 to images with a bright corner, class 0 to all others."""

    def __call__(self, x: Tensor, /) -> Tensor:
        top = (x[:, 0, :3, :3].mean((1, 2)) > 0.93) & (x[:, 0, 3:].mean((1, 2)) < 0.4)
        return torch.nn.functional.one_hot(top.long(), 10).float()


def test_where_one_class_is_answered_to_all_frugal_looks_near_the_others() -> None:
    shares = []
    for act in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if not act:
                patch.setattr("dualstudent.methods.frugal.nearer", lambda x, memory: x)
            method = Frugal(student="digits-cnn", compute=0.1, compute_least=128, blind=0.5)
            state = engine.run(
                method, Bright(ds.Spec((1, 8, 8), 10)), Account("attack", 1280), budgets=[1280]
            )
            counts = state.memory.classes()
            shares.append(float(counts[1] / counts.sum()))
    assert shares[0] < 0.1
    assert shares[1] > 1.5 * shares[0]


def test_parts_of_a_batch_are_learnt_in_the_long_run() -> None:
    torch.manual_seed(0)
    drawn = [parallel.whole(2.3) for _ in range(2000)]
    assert set(drawn) == {2, 3}
    assert sum(drawn) / 2000 == pytest.approx(2.3, abs=0.05)
    assert {parallel.whole(4.0) for _ in range(50)} == {4}


def test_larger_networks_learn_fewer_batches() -> None:
    assert lighter("lenet5", (1, 28, 28)) == 1
    assert lighter("resnet8", (3, 32, 32)) == pytest.approx(6e6 / work("resnet8", (3, 32, 32)))
    assert lighter("resnet18", (3, 32, 32)) == 1 / 16
    assert lighter("torch:some.module:factory", (3, 32, 32)) == 1


def test_light_networks_choose_what_a_large_student_learns(linear: Callable[..., Linear]) -> None:
    """It learns alone after the last query, as many batches as all would have, and is the clone."""
    target = linear(shape=(3, 16, 16))
    method = Frugal(student="resnet18", batch=8, learnt=2, compute_least=1280, after=0.5)
    state, oracle = method.init(target.spec), Oracle(target, Account("attack", 8))
    assert isinstance(state, Scouts)
    assert state.clone.arch == state.students.arch == "lenet5", "nothing has been learnt by the other yet"
    state.memory.add(torch.rand(8, 3, 16, 16), torch.rand(8, 4).softmax(1))
    counts = {"scout": 0, "heir": 0}
    for name, member in (("scout", state.students.members[0]), ("heir", state.heir.members[0])):
        member.register_forward_pre_hook(lambda *_, at=name: counts.update({at: counts[at] + 1}))
    method.learn(state, oracle, 64)
    assert counts == {"scout": 64, "heir": 0}
    method.chosen(state, target.spec, 8, 3)
    assert counts["heir"] == 0 < 64 < counts["scout"]
    counts["scout"] = 64
    [after] = [phase for phase in method.phases(8) if phase.name == "after"]
    for _ in range(4):
        after.step(state, oracle)
    assert counts == {"scout": 64, "heir": 4 * CHUNK // 16 * 2}, "a sixteenth of them, for two"
    assert state.clone.arch == "resnet18"
    assert list(state.clone.students) == list(state.heir.members)
    both = Frugal(student="resnet18", scout="resnet18").init(target.spec)
    assert len(both.clone.students) == 2, "who asks for it has the large ones choose"


@pytest.mark.parametrize("access", [ds.Access.PROBS, ds.Access.LABEL])
@pytest.mark.parametrize("stop_at", [2, 8])
def test_a_stopped_run_of_scouts_goes_on_bit_for_bit(
    access: ds.Access, stop_at: int, linear: Callable[..., Linear], tmp_path: Path
) -> None:
    """Stopped while it asks, and while it learns what was asked; the number of classes is unknown."""
    classes = None if access == ds.Access.LABEL else 4
    method = Frugal(student="digits-cnn", scout="resnet8", batch=8, learnt=8, compute_least=64, max_classes=6)
    target, options = linear(access=access, classes=classes), {"budgets": [40]}
    whole = engine.run(method, target, Account("attack", 40), **options)  # type: ignore[arg-type]
    assert whole.clone.arch == "digits-cnn"
    account, snapshots = Account("attack", 40), Snapshots(tmp_path / "s.pt", "x", 1e9)
    with pytest.raises(Stopped):
        engine.run(
            method, target, account, budgets=[40], snapshots=snapshots, watch=lambda m: m.step == stop_at
        )
    resumed = engine.run(method, target, account, budgets=[40], snapshots=snapshots)
    assert same(whole, resumed)
    with torch.no_grad():
        logits = whole.clone.eval()(torch.rand(4, 1, 8, 8))
    assert logits.shape == (4, 4 if access == ds.Access.PROBS else 6)
    unseen = 0 if access == ds.Access.PROBS else 6 - int((whole.memory.classes() > 0).sum())
    assert (logits < -1000).sum() == 4 * unseen


@pytest.mark.parametrize("stop_at", [13, 20])
def test_a_run_of_scouts_is_extended(stop_at: int, linear: Callable[..., Linear], tmp_path: Path) -> None:
    """The student that has learnt already learns on; stopped in between as at once."""
    method = Frugal(student="digits-cnn", scout="resnet8", batch=8, learnt=8, compute_least=64)
    run = partial(engine.run, method, budgets=[40, 80], seed=1)
    arches: list[str] = []
    whole = run(
        linear(),
        Account("attack", 80),
        watch=lambda m: bool(arches.append(m.state.clone.arch)),  # type: ignore[func-returns-value]
    )
    first = arches.index("digits-cnn")
    assert first == 5, "as many steps ask in the first leg"
    assert set(arches[first:]) == {"digits-cnn"}
    account, snapshots, target = Account("attack", 80), Snapshots(tmp_path / "s.pt", "x", 1e9), linear()
    with pytest.raises(Stopped):
        run(target, account, snapshots=snapshots, watch=lambda m: m.step == stop_at)
    assert same(whole, run(target, account, snapshots=snapshots))


@pytest.mark.parametrize("nothing", [{"after": 0.0}, {"compute": 0.0, "compute_least": 0}])
def test_who_learns_nothing_at_the_end_is_not_chosen_for(nothing: dict[str, float]) -> None:
    spec = ds.Spec((3, 16, 16), 4)
    state = Frugal(student="resnet18", **nothing).init(spec)  # type: ignore[arg-type]
    assert (state.clone.arch, len(state.clone.students)) == ("resnet18", 2)
    with pytest.raises(ds.UserError, match="--scout lenet5 wants --after and --compute above 0"):
        Frugal(student="resnet18", scout="lenet5", **nothing).init(spec)  # type: ignore[arg-type]
    little = Frugal(student="resnet18", after=0.001, compute_least=60)
    assert [phase.steps for phase in little.phases(8) if phase.name == "after"] == [1]


def test_what_chooses_is_lighter_than_what_learns() -> None:
    assert scouting("lenet5", (1, 28, 28)) == "lenet5"
    assert scouting("resnet8", (3, 32, 32)) == "lenet5"
    assert scouting("resnet18", (3, 8, 8)) == smallest((3, 8, 8))
    assert scouting("lenet5-half", (3, 224, 224)) == "lenet5-half", "lenet5 is three times as large"
    assert scouting("torch:some.module:factory", (3, 32, 32)) == "torch:some.module:factory"


def test_a_large_student_learns_all_answers_several_times() -> None:
    """A ResNet-18, whose share of batches is the least: four times at a large budget, with the defaults."""
    [after] = [phase for phase in Frugal().phases(1_000_000) if phase.name == "after"]
    seen = after.steps * CHUNK * 2 * lighter("resnet18", (3, 32, 32)) * Frugal().learnt
    assert seen / 1_000_000 == pytest.approx(4.48)


@pytest.mark.parametrize(
    ("shape", "arch"),
    [((1, 8, 8), "digits-cnn"), ((1, 28, 20), "lenet5"), ((3, 32, 32), "resnet8"), ((1, 64, 64), "resnet8")],
)
def test_a_student_suits_the_images(shape: tuple[int, int, int], arch: str) -> None:
    state = Frugal().init(ds.Spec(shape, 10))
    assert state.last.students.arch == arch
    assert state.students.arch == ("lenet5" if arch == "resnet8" else arch)


def test_classes_of_a_memory() -> None:
    memory = Memory(4, ds.Spec((1, 2, 2), 3))
    for top in ([0, 1], [1, 1], [2, 2]):
        memory.add(torch.rand(2, 1, 2, 2), torch.eye(3)[torch.tensor(top)])
    assert memory.classes().tolist() == [0, 2, 2], "of those that are kept"


@pytest.mark.parametrize("hard", [True, False])
@given(
    capacity=st.integers(5, 12),
    batches=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=9),
)
def test_classes_are_those_of_what_is_kept(hard: bool, capacity: int, batches: list[list[int]]) -> None:
    """Counted as they come and go, and anew from a snapshot; outputs may grow where labels are answered."""
    spec = ds.Spec((1, 2, 2), None if hard else 4, access=ds.Access.LABEL if hard else ds.Access.PROBS)
    memory, outputs = Memory(capacity, spec), 0 if hard else 4
    kept: list[int] = []
    for tops in batches:
        outputs = max(outputs, max(tops) + 1)
        memory.add(torch.rand(len(tops), 1, 2, 2), torch.eye(outputs)[torch.tensor(tops)])
        kept = [*kept, *tops][-capacity:]
        assert memory.classes().tolist() == [kept.count(k) for k in range(outputs)]
    again = Memory(capacity, spec)
    again.load_state_dict(memory.state_dict())
    assert again.classes().tolist() == memory.classes().tolist()


def test_a_memory_draws_all_classes_alike() -> None:
    memory = Memory(1000, ds.Spec((1, 2, 2), 3))
    memory.add(torch.rand(1000, 1, 2, 2), torch.eye(3)[(torch.arange(1000) % 100 == 0).long()])
    drawn = memory.draw_even(2000)[1].mean(0)
    assert drawn.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=0.05)


@pytest.mark.parametrize(("budget", "share"), [(1000, 1.0), (20_000, 1.0), (80_000, 0.5), (320_000, 0.25)])
def test_who_learns_longer_learns_at_lower_rates(budget: int, share: float) -> None:
    """Above 7,000 batches, by the root of how many more; down to zero in the end."""
    first, *_, last = Frugal().phases(budget)
    assert first.schedule(0.0) == pytest.approx(share)
    assert last.schedule(1.0) == pytest.approx(0.0)
    rates = [p.schedule(i / p.steps) for p in Frugal().phases(budget) for i in range(p.steps)]
    assert all(a >= b for a, b in itertools.pairwise(rates))


def test_a_large_student_has_the_rates_of_its_own_batches(linear: Callable[..., Linear]) -> None:
    """Not those of the many batches that the light ones which choose for it would learn."""
    target = linear(shape=(3, 16, 16))
    method = Frugal(student="resnet18", batch=8, learnt=2, after=0.5, rate=0.01)
    state, oracle = method.init(target.spec), Oracle(target, Account("attack", 8))
    assert isinstance(state, Scouts)
    state.memory.add(torch.rand(8, 3, 16, 16), torch.rand(8, 4).softmax(1))
    for budget, part in ((200_000, 1.0), (1_280_000, 0.5)):  # a sixteenth for each of two, half of it after
        after = next(phase for phase in method.phases(budget) if phase.name == "after")
        for _ in range(2):  # once for each step, not again and again
            pace(state, after.schedule(0.0))
            after.step(state, oracle)
            rates = [group["lr"] for group in state.heir_descent.param_groups]
            assert rates == pytest.approx([0.01 * part * cosine(0.5)] * 2)
        asked = method.phases(budget)[0].schedule(0.0)
        assert asked == pytest.approx((7000 / (0.35 * budget)) ** 0.5)


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
    after = method.phases(10)[-1]
    for _ in range(after.steps):
        after.step(state, oracle)
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
    after = phases[-1].steps
    assert [step - 100 for step in steps if step > 100] == [
        after - 3 * after // 4,
        after - after // 2,
        after - after // 4,
        after,
    ]
