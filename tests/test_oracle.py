"""The only door: charges first, checks images and answers, and lets neither gradient nor target out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dualstudent as ds
from conftest import Linear
from dualstudent import parallel
from dualstudent.defences import LabelOnly
from dualstudent.ledger import Account, Shown
from dualstudent.losses import cross_entropy, l1, recover_logits

LABEL, TOPK, PROBS = ds.Access.LABEL, ds.Access.TOPK, ds.Access.PROBS


@dataclass
class Says:
    """A target that answers whatever it is told to."""

    spec: ds.Spec
    answer: Any
    look: Callable[[Tensor], None] = lambda x: None
    seen: int = 0

    def __call__(self, x: Tensor, /) -> Any:
        self.look(x)
        self.seen += len(x)
        return self.answer(x) if callable(self.answer) else self.answer


def says(answer: Any, access: ds.Access = PROBS, classes: int | None = 3) -> Says:
    return Says(ds.Spec((1, 2, 2), classes, access=access), answer)


def images(n: int = 2, *shape: int) -> Tensor:
    return torch.rand(n, *(shape or (1, 2, 2)), generator=torch.Generator().manual_seed(n))


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values)


class TestAnswers:
    def test_are_those_of_the_target(self, linear: Callable[..., Linear]) -> None:
        target, x = linear(), images(5, 1, 8, 8)
        assert torch.equal(ds.Oracle(target, Account("attack"))(x), target(x))

    @pytest.mark.parametrize(
        ("answer", "word"),
        [
            ([[0.2, 0.3, 0.5]] * 2, "list, not a tensor"),
            (None, "NoneType, not a tensor"),
            (torch.full((2,), 1.0), r"shape \(2,\)"),
            (torch.full((2, 3, 1), 1 / 3), r"shape \(2, 3, 1\)"),
            (rows([0.2, 0.3, 0.5]), "1 rows for 2 images"),
            (rows(*[[0.2, 0.3, 0.5]] * 3), "3 rows for 2 images"),
            (rows(*[[0.5, 0.5]] * 2), "2 classes, its spec says 3"),
            (rows(*[[0.1, 0.2, 0.3, 0.4]] * 2), "--classes 4"),
            (rows([0.2, 0.3, 0.5], [0.2, float("nan"), 0.8]), "NaN"),
            (rows([0.2, 0.3, 0.5], [0.0, float("inf"), 0.0]), "infinite"),
            (rows([0.2, 0.3, 0.5], [-0.1, 0.3, 0.8]), "no probabilities"),
            (rows([2.0, -1.0, 0.5], [0.1, 3.0, -2.0]), "--output logits"),
            (rows([0.2, 0.3, 0.5], [0.2, 0.3, 0.49]), r"0\.99 … 1"),
            (rows([0.2, 0.3, 0.51], [0.2, 0.3, 0.5]), r"1 … 1\.01"),
        ],
    )
    def test_that_are_none_are_refused(self, answer: Any, word: str) -> None:
        target, account, shown = says(answer), Account("attack"), Shown()
        with pytest.raises(ds.TargetError, match=word) as caught:
            ds.Oracle(target, account, shown)(images())
        assert "\n" not in str(caught.value)
        assert target.seen == account.spent == 2  # it was asked, so it is charged
        assert shown.unique == 0  # but nothing was learnt

    @pytest.mark.parametrize("bad", [[0.2, 0.3, 0.5], [0.0, 1.0 - 1e-5, 0.0], [1.0, 1.0, -1.0]])
    def test_labels_are_one_hot(self, bad: list[float]) -> None:
        with pytest.raises(ds.TargetError):
            ds.Oracle(says(rows([0.0, 1.0, 0.0], bad), LABEL), Account("attack"))(images())
        good = rows([0.0, 1.0, 0.0], [1.0, 0.0, 0.0])
        assert torch.equal(ds.Oracle(says(good, LABEL), Account("attack"))(images()), good)

    def test_rows_of_the_largest_only_may_sum_below_one(self) -> None:
        some = rows([0.6, 0.3, 0.0], [0.0, 0.4, 0.0])
        assert torch.equal(ds.Oracle(says(some, TOPK), Account("attack"))(images()), some)
        with pytest.raises(ds.TargetError, match="no probabilities"):
            ds.Oracle(says(some), Account("attack"))(images())
        with pytest.raises(ds.TargetError, match="no probabilities"):
            ds.Oracle(says(rows([0.6, 0.3, 0.2], [0.0, 0.4, 0.0]), TOPK), Account("attack"))(images())

    def test_rounding_of_float32_is_no_error(self) -> None:
        third = torch.full((2, 3), 0.3334)
        assert torch.equal(ds.Oracle(says(third), Account("attack"))(images()), third)

    def test_any_width_where_the_number_of_classes_is_unknown(self) -> None:
        target = says(lambda x: nn.functional.one_hot(torch.arange(len(x))), LABEL, classes=None)
        oracle = ds.Oracle(target, Account("attack"))
        assert oracle(images(2)).tolist() == [[1, 0], [0, 1]]
        assert oracle(images(4)).shape == (4, 4)
        assert oracle(images(4)).dtype == torch.float32


class TestCharge:
    def test_comes_before_the_question(self) -> None:
        account, bill = Account("attack"), list[int]()
        target = says(lambda x: torch.full((len(x), 3), 1 / 3))
        target.look = lambda x: bill.append(account.spent)
        oracle = ds.Oracle(target, account)
        oracle(images(3))
        oracle(images(4))
        assert bill == [3, 7]

    def test_over_the_limit_nothing_is_asked(self, linear: Callable[..., Linear]) -> None:
        target, account, shown = linear(), Account("attack", 5), Shown()
        oracle = ds.Oracle(target, account, shown)
        oracle(images(4, 1, 8, 8))
        with pytest.raises(ds.Overdraft, match="limit of 5"):
            oracle(images(2, 1, 8, 8))
        assert target.seen == account.spent == account.asked == 4
        oracle(images(1, 1, 8, 8))
        assert target.seen == account.spent == 5
        assert shown.unique == 5

    def test_a_target_that_fails_was_asked(self) -> None:
        account = Account("attack")
        with pytest.raises(ds.TargetError, match="division by zero"):
            ds.Oracle(says(lambda x: 1 / 0), account)(images(3))
        assert account.spent == 3

    def test_all_ranks_are_charged(
        self, linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parallel, "total", lambda images: 3 * images)
        account = Account("attack", 12)
        oracle = ds.Oracle(linear(), account)
        oracle(images(4, 1, 8, 8))
        assert account.spent == 12
        with pytest.raises(ds.Overdraft):
            oracle(images(1, 1, 8, 8))


class TestImages:
    @pytest.mark.parametrize(
        ("bounds", "x", "word"),
        [
            ((0.0, 1.0), images(2, 1, 3, 2), r"shape \(1, 3, 2\)"),
            ((0.0, 1.0), images(2, 3, 2, 2), r"shape \(3, 2, 2\)"),
            ((0.0, 1.0), images() + 0.5, r"takes \[0, 1\]"),
            ((0.0, 1.0), images() - 0.5, r"takes \[0, 1\]"),
            ((-1.0, 1.0), images() * 4 - 2, r"takes \[-1, 1\]"),
            ((0.0, 1.0), images() * 0 + float("nan"), "not finite"),
            ((0.0, 1.0), images() / 0, "not finite"),
        ],
    )
    def test_that_cannot_be_shown_are_not_charged(
        self, bounds: tuple[float, float], x: Tensor, word: str
    ) -> None:
        target, account = says(torch.full((2, 3), 1 / 3)), Account("attack")
        target.spec = ds.Spec((1, 2, 2), 3, bounds)
        with pytest.raises(ds.UserError, match=word):
            ds.Oracle(target, account)(x)
        assert target.seen == account.spent == account.asked == 0

    def test_both_ends_of_the_bounds_can_be_shown(self) -> None:
        x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
        target = says(torch.full((2, 3), 1 / 3))
        target.spec = ds.Spec((1, 2, 2), 3, (-1.0, 1.0))
        assert ds.Oracle(target, Account("attack"))(x).shape == (2, 3)

    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
    def test_reach_an_eight_bit_service_as_bytes(self, bounds: tuple[float, float]) -> None:
        seen: list[Tensor] = []
        target = says(torch.full((5, 3), 1 / 3))
        target.look = lambda x: seen.append(x.clone())
        target.spec = spec = ds.Spec((1, 2, 2), 3, bounds, levels=256)
        x, shown = spec.encode(images(5)), Shown()
        before = x.clone()
        ds.Oracle(target, Account("attack"), shown)(x)
        level = (seen[0] - bounds[0]) / (bounds[1] - bounds[0]) * 255
        assert torch.allclose(level, level.round(), atol=1e-3)
        assert not torch.equal(seen[0], x)
        assert torch.equal(x, before)
        shown.add(seen[0], torch.full((5, 3), 1 / 3))
        assert shown.unique == 5  # the record is of what was shown, not of what was meant

    def test_the_record_counts_what_was_shown(self, linear: Callable[..., Linear]) -> None:
        target, shown, x = linear(), Shown(), images(6, 1, 8, 8)
        oracle = ds.Oracle(target, Account("attack"), shown)
        answer = torch.cat([oracle(x), oracle(x[:2])])
        assert shown.unique == 6
        assert shown.histogram() == {c: n for c in range(4) if (n := int((answer.argmax(1) == c).sum()))}


class TestNoWayThrough:
    def test_no_attribute_leads_to_target_or_account(self, linear: Callable[..., Linear]) -> None:
        target, account = linear(), Account("attack")
        oracle, seen = ds.Oracle(target, account), set[int]()

        def walk(value: object, depth: int) -> None:
            assert value is not target
            assert value is not account
            assert not isinstance(value, Tensor)
            if depth == 0 or id(value) in seen:
                return
            seen.add(id(value))
            for name in {*dir(value), *getattr(type(value), "__slots__", ())}:
                if not name.startswith("__"):
                    walk(getattr(value, name, None), depth - 1)

        walk(oracle, 3)
        assert not hasattr(oracle, "__dict__")
        with pytest.raises(AttributeError):
            oracle.target = target  # type: ignore[attr-defined]

    def test_no_gradient_of_a_target_whose_weights_want_one(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1))
        target, shown = says(network), list[bool]()
        target.look = lambda x: shown.append(x.requires_grad)
        x = images(4).requires_grad_()
        answer = ds.Oracle(target, Account("attack"))(x)
        assert shown == [False]
        assert not answer.requires_grad
        assert answer.grad_fn is None
        (answer * torch.ones(3, requires_grad=True)).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is None
        assert all(p.grad is None for p in network.parameters())

    @pytest.mark.parametrize("access", [LABEL, PROBS])
    def test_answers_can_be_learnt(self, access: ds.Access, linear: Callable[..., Linear]) -> None:
        """Inference tensors could not be saved for backward, nor changed in place."""
        student, x = nn.Linear(64, 4), images(4, 1, 8, 8)
        answer = ds.Oracle(linear(access=access), Account("attack"))(x)
        assert not answer.is_inference()
        logits = student(x.flatten(1))[None]
        loss = cross_entropy(logits, answer) if access == LABEL else l1(logits, recover_logits(answer))
        (loss.mean() + (student.weight @ x[0].flatten() * answer[0]).sum()).backward()  # type: ignore[no-untyped-call]
        assert student.weight.grad is not None
        assert student.weight.grad.abs().sum() > 0
        answer.mul_(2)


class TestLabelOnly:
    def test_reveals_the_top_class_alone(self, linear: Callable[..., Linear]) -> None:
        target, x = linear(), images(20, 1, 8, 8)
        hidden = LabelOnly(target)
        assert hidden.spec == ds.Spec((1, 8, 8), 4, access=LABEL)
        assert isinstance(hidden, ds.Target)
        answer = ds.Oracle(hidden, Account("attack"))(x)
        assert torch.equal(answer.argmax(1), target(x).argmax(1))
        assert set(answer.flatten().tolist()) == {0.0, 1.0}
        assert torch.equal(LabelOnly(hidden)(x), answer)
        assert target.spec.access == PROBS
