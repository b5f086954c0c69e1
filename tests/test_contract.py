"""What every method promises. A new method is covered by its line in the registry."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, methods
from dualstudent.checkpoint import Snapshots
from dualstudent.errors import Stopped
from dualstudent.ledger import Account, Shown
from dualstudent.methods import Method
from dualstudent.oracle import Oracle

ALL = [(name, preset) for name, kind in methods.registry().items() for preset in kind.presets]
LAST = [(name, list(kind.presets)[-1]) for name, kind in methods.registry().items()]
every_preset = pytest.mark.parametrize(("name", "preset"), ALL)
every_method = pytest.mark.parametrize(("name", "preset"), LAST)  # a method's presets differ in numbers alone
CASES = [
    (name, preset, access)
    for name, preset in LAST
    for access in (ds.Access.PROBS, ds.Access.LABEL)
    if access >= methods.find(name).needs
]
every_case = pytest.mark.parametrize(("name", "preset", "access"), CASES)

SMALL: dict[str, dict[str, Any]] = {  # what makes a method quick to test; the rest is its preset's
    "dual-student": {"batch": 8, "width": 4, "noise_size": 8, "student": "digits-cnn"},
    "dfme": {"batch": 4, "width": 4, "noise_size": 8, "student": "digits-cnn"},
    "maze": {"batch": 4, "directions": 2, "replays": 2, "width": 4, "noise_size": 8, "student": "digits-cnn"},
    "disguide": {"batch": 8, "width": 4, "noise_size": 8, "student": "digits-cnn"},
    "dfms-sl": {"batch": 8, "width": 4, "noise_size": 8, "student": "digits-cnn", "warm": 1},
    "dfms-hl": {"batch": 8, "width": 4, "noise_size": 8, "student": "digits-cnn", "warm": 1},
    "frugal": {"batch": 8, "learnt": 8, "compute_least": 24, "candidates": 3, "student": "digits-cnn"},
    "procedural": {"batch": 8, "learnt": 8, "replays": 2, "student": "digits-cnn"},
    "noise": {"batch": 8, "learnt": 8, "replays": 2, "student": "digits-cnn"},
    "knockoff": {"batch": 8, "learnt": 8, "replays": 2, "student": "digits-cnn"},
}


def quick(name: str, preset: str, **more: Any) -> Method[Any]:
    return replace(methods.find(name).preset(preset), **SMALL[name], **more)


def spent_by(
    method: Method[Any], target: Linear, budget: int, seed: int = 0, **more: Any
) -> tuple[Any, Account]:
    account = Account("attack", budget)
    return engine.run(method, target, account, budgets=[budget], seed=seed, **more), account


def weights(state: Any) -> list[Tensor]:
    """Every tensor of a state, optimisers included."""
    found: list[Tensor] = []

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value.clone())
        elif isinstance(value, dict):
            for part in value.values():
                walk(part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                walk(part)

    for part in vars(state).values():
        if part is not None:
            walk(part.state_dict())
    return found


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@every_case
@pytest.mark.parametrize("budget", [2, 3, 7, 8, 9, 39, 40, 41, 42, 81, 97])
def test_three_counts_agree(
    name: str, preset: str, access: ds.Access, budget: int, linear: Callable[..., Linear]
) -> None:
    method, target = quick(name, preset), linear(access=access)
    _, account = spent_by(method, target, budget)
    planned = sum(phase.steps * phase.cost for phase in engine.plan(method, [budget]))
    assert target.seen == account.spent == account.asked == planned
    assert account.spent == budget
    assert min(target.calls) >= 2


@every_method
def test_a_step_that_asks_more_than_planned_is_caught(
    name: str, preset: str, linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = quick(name, preset)
    honest = engine.plan(method, [80])

    def also(step: Any) -> Any:
        return lambda s, o: (o(torch.zeros(1, 1, 8, 8)), step(s, o))[1]

    greedy = [replace(phase, step=also(phase.step)) for phase in honest]
    monkeypatch.setattr(engine, "plan", lambda *_: greedy)
    target = linear()
    with pytest.raises(RuntimeError, match=r"asked \d+ images, plan"):  # no limit: the plan has to catch it
        engine.run(method, target, Account("attack"), budgets=[80])
    assert target.seen <= 1 + method.queries_per_step, "caught in the first step"
    overdrawn = Account("attack", 80)
    overdrawn.charge(80)
    with pytest.raises(ds.Overdraft):
        engine.run(method, target, overdrawn, budgets=[80])


@every_method
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_plan_that_leaves_much_of_the_budget_is_refused(
    name: str, preset: str, share: float, linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = quick(name, preset)
    honest = type(method).phases
    monkeypatch.setattr(type(method), "phases", lambda self, b, d=0: honest(self, int(share * b), d))
    with pytest.raises(RuntimeError, match="plans"):
        engine.plan(method, [80])


@every_case
def test_same_seed_same_students_other_seed_others(
    name: str, preset: str, access: ds.Access, linear: Callable[..., Linear]
) -> None:
    method, target = quick(name, preset), linear(access=access)
    first, _ = spent_by(method, target, 90)
    torch.rand(17)  # whatever happened to the generator before
    again, _ = spent_by(method, target, 90)
    other, _ = spent_by(method, target, 90, seed=1)
    assert same(first, again)
    assert not same(first, other)


@every_case
@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_stop_and_resume_is_exact(
    name: str, preset: str, access: ds.Access, stop_at: int, linear: Callable[..., Linear], tmp_path: Path
) -> None:
    method, budget = quick(name, preset), 170
    whole, _ = spent_by(method, linear(access=access), budget)
    target, account = linear(access=access), Account("attack", budget, tmp_path / "account")
    options: dict[str, Any] = {"budgets": [budget], "snapshots": Snapshots(tmp_path / "s.pt", "x", 1e9)}
    with pytest.raises(Stopped):
        engine.run(method, target, account, watch=lambda m: m.step == stop_at, **options)
    again = Account("attack", budget, tmp_path / "account")
    resumed = engine.run(method, target, again, **options)
    assert same(whole, resumed)
    assert target.seen == again.spent == budget
    assert again.asked_again == 0


@every_method
@pytest.mark.parametrize("saved", [0, 2])
def test_a_crash_is_charged_as_asked_again(
    name: str, preset: str, saved: int, linear: Callable[..., Linear], tmp_path: Path
) -> None:
    """Steps lost since the snapshot are replayed: target = spent + asked again, students the same."""
    method, budget = quick(name, preset), 250
    whole, _ = spent_by(method, linear(), budget)
    target = linear()
    snapshots = Snapshots(tmp_path / "s.pt", "x", 1e9)

    def crash_late(moment: engine.Moment[Any]) -> bool:
        if moment.step == saved:
            snapshots.save(moment.step, moment.state, account)
        if moment.step == 4:
            raise ConnectionError
        return False

    account = Account("attack", budget, tmp_path / "account")
    with pytest.raises(ConnectionError):
        engine.run(method, target, account, budgets=[budget], snapshots=snapshots, watch=crash_late)
    again = Account("attack", budget, tmp_path / "account")
    resumed = engine.run(method, target, again, budgets=[budget], snapshots=snapshots)
    assert same(whole, resumed)
    assert again.spent == budget
    costs = [phase.cost for phase in engine.plan(method, [budget]) for _ in range(phase.steps)]
    assert again.asked_again == sum(costs[saved:4]) > 0
    assert target.seen == again.spent + again.asked_again == again.asked


@every_method
def test_evaluation_in_between_changes_nothing(name: str, preset: str, linear: Callable[..., Linear]) -> None:
    method = quick(name, preset)
    plain, _ = spent_by(method, linear(), 90)
    # a clone shares its students' modules: looking at it in train mode would move BatchNorm, so
    # evaluations go through evaluation.logits, which restores the mode
    from dualstudent.evaluation import logits

    data = ds.load_data("digits")[:20]

    def judge(moment: engine.Moment[Any]) -> bool:
        logits(moment.state.clone, data, linear().spec)
        torch.rand(moment.step)
        return False

    watched, _ = spent_by(method, linear(), 90, watch=judge)
    assert same(plain, watched)


@every_case
def test_no_gradient_and_no_handle(
    name: str, preset: str, access: ds.Access, linear: Callable[..., Linear]
) -> None:
    """The target sees no graph although it has weights to train; no attribute of the oracle leads to it."""
    method = quick(name, preset)

    class Trainable(Linear):
        def __call__(self, x: Tensor, /) -> Tensor:
            assert not x.requires_grad
            assert not torch.is_grad_enabled()
            return super().__call__(x)

    target = Trainable(linear(access=access).spec)
    target.weight.requires_grad_()
    account = Account("attack", 90)
    state = engine.run(method, target, account, budgets=[90])
    assert target.weight.grad is None
    answer = Oracle(target, Account("attack"))(torch.rand(3, 1, 8, 8))
    assert answer.grad_fn is None
    reachable = [state, *(getattr(Oracle(target, account), n) for n in Oracle.__slots__ if n != "_ask")]
    assert target.weight.data_ptr() not in {t.data_ptr() for t in weights(state)}
    for value in reachable:
        assert not leads_to(value, target)


def leads_to(value: Any, target: object) -> bool:
    """Whether a target can be reached from an object through attributes and containers."""
    seen: set[int] = set()
    rest = [value]
    while rest:
        one = rest.pop()
        if one is target:
            return True
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            rest += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set)):
            rest += list(one)
        elif not isinstance(one, (Tensor, type, str, bytes, int, float)):
            rest += list(getattr(one, "__dict__", {}).values())
            rest += [getattr(one, name, None) for name in getattr(type(one), "__slots__", ())]
    return False


def test_the_search_for_a_handle_can_find_one(linear: Callable[..., Linear]) -> None:
    target = linear()
    assert leads_to({"a": [object(), (1, {"deep": target})]}, target)


@every_method
def test_refused_before_the_first_query(name: str, preset: str, linear: Callable[..., Linear]) -> None:
    method, target = quick(name, preset), linear()
    for budget in (1, 0, -5):
        with pytest.raises(ds.UserError):
            spent_by(method, target, budget)
    if method.needs > ds.Access.LABEL:
        target.spec = replace(target.spec, access=ds.Access.LABEL)
        with pytest.raises(ds.UserError):
            spent_by(method, target, 90)
    assert target.seen == 0


@every_preset
def test_recipe_is_its_own_record(name: str, preset: str) -> None:
    """Frozen, JSON-able, complete: the manifest can rebuild it; a typo is an error."""
    from dataclasses import asdict

    method = quick(name, preset)
    again = json.loads(json.dumps(asdict(method)))
    rebuilt = type(method)(**{k: tuple(v) if isinstance(v, list) else v for k, v in again.items()})
    assert rebuilt == method
    with pytest.raises(AttributeError):
        method.batch = 3  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        type(method)(
            # type: ignore[call-arg]
            scheduer="cosine"
        )


@every_method
def test_record_of_what_was_shown(name: str, preset: str, linear: Callable[..., Linear]) -> None:
    shown = Shown()
    _, account = spent_by(quick(name, preset), linear(), 90, shown=shown)
    assert sum(shown.histogram().values()) == account.spent
    assert shown.unique <= account.spent
