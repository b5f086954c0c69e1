"""What frugal thinks an image is worth, what it draws by that, and how it climbs."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, priors
from dualstudent.ledger import Account
from dualstudent.methods import Frugal
from dualstudent.methods.worth import best, climbed, worth
from dualstudent.networks import make_students


def worth_of(rows: Tensor, answers: list[int], sure: float = 2.0, doubtful: float = 1.0) -> Tensor:
    """What images promise for which two students give logits (2, b, 4), after some answers."""
    return worth(rows, torch.bincount(torch.tensor(answers), minlength=4).float(), sure, doubtful)


def test_what_looks_like_a_class_is_worth_more() -> None:
    sure, dull = torch.tensor([8.0, 0, 0, 0]), torch.tensor([2.0, 0, 0, 0])
    rows = torch.stack([sure, dull]).expand(2, 2, 4).clone()
    found = worth_of(rows, [0, 1, 2, 3], doubtful=0.0)
    assert float(found[0] - found[1]) == pytest.approx(2 * math.log(4), rel=1e-4), "the square of the spread"
    assert worth_of(rows, [0, 1, 2, 3], doubtful=0.0, sure=0.0).std() == 0


def test_what_the_students_disagree_on_is_worth_more() -> None:
    one = torch.tensor([[3.0, 0, 0, 0], [3.0, 0, 0, 0]])
    other = torch.tensor([[3.0, 0, 0, 0], [0.0, 3, 0, 0]])
    found = worth_of(torch.stack([one, other]), [0, 1, 2, 3], sure=0.0)
    assert found[1] > found[0] + 2


def test_seldom_answered_classes_are_worth_more() -> None:
    each = torch.eye(4) * 5
    found = worth_of(torch.stack([each, each]), [0, 0, 0, 0, 0, 0, 1, 2], sure=0.0)
    rare = (found - found[0]).exp()
    assert float(rare[1]) == pytest.approx(float(rare[2]), rel=1e-5)
    assert float(rare[1]) == pytest.approx(6.0, rel=1e-4), "six times as many answers"
    assert rare[3] > rare[1], "never answered: most"


def by(value: Callable[[Tensor], Tensor], x: Tensor, *rest: object, step: Callable[..., Tensor]) -> Tensor:
    """Let a step see images themselves, not what students think of them."""
    students = make_students(ds.Spec((1, 4, 4), 2), "digits-cnn", 2, 2)
    students.forward = lambda x: x  # type: ignore[method-assign]
    return step(students, lambda x, _: value(x), x, torch.ones(2), *rest)


def test_images_are_drawn_by_their_worth_and_none_twice() -> None:
    torch.manual_seed(0)
    chances, rows = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.arange(4.0).view(4, 1, 1, 1)

    def value(x: Tensor) -> Tensor:
        return chances[x.long().flatten()].log()

    first = torch.cat([by(value, rows, 1, step=best) for _ in range(4000)])
    assert torch.bincount(first.long().flatten(), minlength=4) / 4000 == pytest.approx(
        chances.numpy(), abs=0.03
    )
    for _ in range(20):
        assert sorted(by(value, rows, 3, step=best).flatten().tolist()) == [0, 1, 2]


def test_a_step_uphill_is_worth_more_and_as_long_as_told() -> None:
    torch.manual_seed(0)
    spec = ds.Spec((1, 4, 4), 2, bounds=(-1.0, 3.0))
    x, steep = torch.rand(5, 1, 4, 4), torch.randn(1, 4, 4) * 1e-3

    def value(x: Tensor) -> Tensor:
        return (x * steep).sum((1, 2, 3))

    moved = by(value, x, 0.01, spec, step=climbed)
    assert not moved.requires_grad
    assert (moved - x).square().mean((1, 2, 3)).sqrt().tolist() == pytest.approx([0.04] * 5, rel=1e-4)
    assert ((moved - x) * steep).sum((1, 2, 3)).min() > 0
    far = by(value, x, 10.0, spec, step=climbed)
    assert far.min() >= -1
    assert far.max() <= 3
    assert torch.equal(by(lambda x: value(0 * x), x, 0.01, spec, step=climbed), x), "flat: it stays"


@pytest.mark.parametrize(("labels", "climbs", "moved"), [("soft", 3, 4), ("soft", 0, 0), ("hard", 3, 0)])
def test_a_half_climbs_where_probabilities_are_answered(
    linear: Callable[..., Linear], labels: str, climbs: int, moved: int
) -> None:
    """What is asked and is no candidate has climbed; it is worth more to the students than it was."""
    target = linear(access=ds.Access.PROBS if labels == "soft" else ds.Access.LABEL)
    method = Frugal(student="digits-cnn", batch=8, compute_least=64, blind=0.5, climbs=climbs, stride=0.02)
    state = engine.run(method, target, Account("attack", 64), budgets=[64])
    candidates = priors.broad(48, target.spec.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(priors, "broad", lambda *_: candidates)
        x = method.chosen(state, target.spec, 8, 6)
    apart, nearest = torch.cdist(x.flatten(1), candidates.flatten(1)).min(1)
    climbed = apart > 0.02
    assert int(climbed.sum()) == moved
    state.students.eval()
    before, after = (
        worth(state.students(rows), state.memory.classes(), 2.0, 1.0) for rows in (candidates[nearest], x)
    )
    assert (after - before)[climbed].sum() >= 0.01 * moved
    assert all(parameter.requires_grad for parameter in state.students.parameters())
