"""Dual Student itself: the algorithm, its bound, and recipes broken on purpose."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent import engine
from dualstudent.ledger import Account
from dualstudent.methods.dual_student import DualStudent, DualStudentState
from dualstudent.methods.game import noise
from dualstudent.oracle import Oracle

QUICK: dict[str, Any] = {"batch": 16, "width": 8, "noise_size": 16, "student": "digits-cnn"}
every_access = pytest.mark.parametrize("access", [ds.Access.PROBS, ds.Access.LABEL])


def run(method: DualStudent, target: Linear, budget: int = 400, watch: Any = None) -> DualStudentState:
    account = Account("attack", budget)
    return engine.run(method, target, account, budgets=[budget], watch=watch or (lambda moment: False))


@every_access
def test_generator_step_asks_nobody_and_leaves_the_students_alone(
    access: ds.Access, linear: Callable[..., Linear]
) -> None:
    method, target = DualStudent(**QUICK), linear(access=access)
    state = method.init(target.spec)
    weights = {name: w.clone() for name, w in state.students.named_parameters()}
    before = {name: w.clone() for name, w in state.generator.named_parameters()}
    state.students.zero_grad()
    method.climb(state)
    assert target.seen == 0
    for name, weight in state.students.named_parameters():
        assert torch.equal(weight, weights[name])
        assert weight.grad is None, "gradients into the students are work thrown away"
    assert any(not torch.equal(w, before[n]) for n, w in state.generator.named_parameters())


def test_generator_step_climbs_the_disagreement(linear: Callable[..., Linear]) -> None:
    method = DualStudent(**{**QUICK, "batch": 64}, generator_rate=3e-3)
    state = method.init(linear().spec)
    torch.manual_seed(0)
    z = noise(state.generator, 64)
    method = replace(method)
    object.__setattr__(method, "draw", lambda state, images: z)
    gaps = [method.climb(state)["gap"].item() for _ in range(15)]
    assert gaps[-1] > 1.2 * gaps[0]


@every_access
def test_student_step_comes_closer_to_the_answers(access: ds.Access, linear: Callable[..., Linear]) -> None:
    method, target = DualStudent(**QUICK, rate_soft=0.05, rate_hard=0.05), linear(access=access)
    torch.manual_seed(0)
    state = method.init(target.spec)
    oracle = Oracle(target, Account("attack"))
    told: dict[str, Tensor] = {}
    state.generator.eval()
    frozen = {name: w.clone() for name, w in state.generator.state_dict().items()}
    batches = [next(iter(method.ask(state, oracle, [64]))) for _ in range(25)]
    values = [method.imitate(state, target.spec, x, answer, told).item() for x, answer in batches]
    assert sum(values[-5:]) < 0.8 * sum(values[:5])
    for name, weight in state.generator.state_dict().items():
        assert torch.equal(weight, frozen[name])


def test_both_students_see_the_same_batch_and_start_apart(linear: Callable[..., Linear]) -> None:
    method, target = DualStudent(**QUICK), linear()
    state = method.init(target.spec)
    first, second = (list(m.parameters()) for m in state.students.members)
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    method.iterate(state, Oracle(target, Account("attack")), [16] * 5)
    assert target.calls == [5 * 16], "asked once for the iteration: the generator does not move in between"


@pytest.mark.parametrize("students", [2, 3, 4])
def test_any_number_of_students(students: int, linear: Callable[..., Linear]) -> None:
    state = run(DualStudent(**QUICK, students=students), linear(), budget=200)
    assert len(state.clone.students) == students
    x = torch.rand(3, 1, 8, 8)
    state.students.eval()
    each = torch.stack([member(x) for member in state.clone.eval().students])
    assert torch.allclose(state.clone.eval()(x), each.mean(0))


def test_average_never_stands_in_before_its_first_move(linear: Callable[..., Linear]) -> None:
    """An untouched average would be the untrained students: trap 2 of the facts."""
    method = DualStudent(**QUICK, average=0.9, average_every=10)
    early, late = run(method, linear(), budget=80 * 9), run(method, linear(), budget=80 * 10)
    assert early.average is not None
    assert late.average is not None
    assert early.clone.students[0] is early.students.members[0]
    assert late.clone.students[0] is late.average.students.members[0]
    for mine, theirs in zip(
        late.average.students.state_dict().values(), late.students.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)  # a copy at its first move


def test_unknown_classes_in_order_of_first_appearance() -> None:
    target = Linear(ds.Spec((1, 8, 8), None, access=ds.Access.LABEL), width=6)
    order: list[int] = []
    honest = target.__call__

    class Noting(Linear):
        def __call__(self, x: Tensor, /) -> Tensor:
            answer = honest(x)
            order.extend(label for label in answer.argmax(1).tolist() if label not in order)
            return answer

    state = run(DualStudent(**QUICK, max_classes=20), Noting(target.spec, width=6))
    ids = state.clone.ids
    assert ids is not None
    assert ids.tolist() == order + [-1] * (20 - len(order))
    state.students.eval()
    p = state.clone(torch.rand(5, 1, 8, 8)).softmax(1)
    assert (p[:, len(order) :] == 0).all()


def test_more_classes_than_the_head_has() -> None:
    class Cycling(Linear):
        def __call__(self, x: Tensor, /) -> Tensor:
            return torch.eye(5)[torch.arange(len(x)) % 5]

    spec = ds.Spec((1, 8, 8), None, access=ds.Access.LABEL)
    with pytest.raises(ds.UserError, match="--max-classes"):
        run(DualStudent(**QUICK, max_classes=4), Cycling(spec))


def test_start_refuses_another_head(linear: Callable[..., Linear], tmp_path: Path) -> None:
    from dualstudent.networks import save_student

    state = run(DualStudent(**QUICK), linear(classes=4), budget=40)
    save_student(tmp_path, state.clone, spec=linear().spec, seed=0)
    method = DualStudent(**QUICK, start=str(tmp_path))
    assert method.init(linear(classes=4).spec).students.judged == 1
    with pytest.raises(ds.UserError, match="4 classes"):
        method.init(linear(classes=5).spec)


def test_rates_fall_as_the_paper_says() -> None:
    """× 0.3 at 10, 30 and 50 % of the budget, over the whole run, the rest included."""
    phases = DualStudent(batch=10).phases(1030)
    factors = []
    for phase in phases:
        factors += [phase.schedule(i / phase.steps) for i in range(phase.steps)]
    expected = [0.3 ** sum(50 * i / 1030 >= at for at in (0.1, 0.3, 0.5)) for i in range(21)]
    assert factors == pytest.approx(expected)


@pytest.mark.parametrize(("bounds", "levels"), [((0.0, 1.0), None), ((-1.0, 1.0), None), ((0.0, 1.0), 256)])
def test_asked_images_are_spread_over_the_input_range(
    bounds: tuple[float, float], levels: int | None, linear: Callable[..., Linear]
) -> None:
    seen: list[Tensor] = []

    class Keeping(Linear):
        def __call__(self, x: Tensor, /) -> Tensor:
            seen.append(x)
            return super().__call__(x)

    run(DualStudent(**QUICK), Keeping(linear(bounds=bounds, levels=levels).spec))
    x, (low, high) = torch.cat(seen), bounds
    assert low <= x.min() < low + 0.2 * (high - low)
    assert high - 0.2 * (high - low) < x.max() <= high
    if levels:
        assert torch.allclose(x * 255, (x * 255).round(), atol=1e-3)
