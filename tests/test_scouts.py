"""Large students of frugal: light ones choose for them, and they learn what was asked."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import dualstudent as ds
from conftest import Linear
from dualstudent import engine
from dualstudent.checkpoint import Snapshots
from dualstudent.errors import Stopped
from dualstudent.ledger import Account
from dualstudent.methods import Frugal
from dualstudent.methods.base import cosine, pace
from dualstudent.methods.frugal import CHUNK
from dualstudent.methods.learners import Scouts
from dualstudent.networks import lighter, scouting, smallest, work
from dualstudent.oracle import Oracle
from test_contract import same


def test_larger_networks_learn_fewer_batches() -> None:
    assert lighter("lenet5", (1, 28, 28)) == lighter("lenet5", (1, 64, 64)) == 1
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
    method.learn(state, oracle, 1280.0, 64)
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
    after = sum(phase.steps for phase in Frugal().phases(1_000_000) if phase.name in ("after", "calm"))
    seen = after * CHUNK * 2 * lighter("resnet18", (3, 32, 32)) * Frugal().learnt
    assert seen / 1_000_000 == pytest.approx(4.48)


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


def test_large_students_that_choose_have_the_rates_of_so_few_batches(linear: Callable[..., Linear]) -> None:
    """A sixteenth of the batches, while they ask and after."""
    target = linear(shape=(3, 16, 16))
    method = Frugal(student="resnet18", scout="resnet18", batch=8, learnt=2, after=0.5, rate=0.01)
    state, oracle = method.init(target.spec), Oracle(target, Account("attack"))
    phases = method.phases(1_280_000)  # 28,000 batches
    for name, falls in (("blind", 1.0), ("after", cosine(0.5))):
        phase = next(p for p in phases if p.name == name)
        for _ in range(2):  # once for each step
            pace(state, phase.schedule(0.0))
            phase.step(state, oracle)
            rates = [group["lr"] for group in state.student_descent.param_groups]
            assert rates == pytest.approx([0.01 * 0.5 * falls] * 2)
