"""What an owner learns of a clone, by hand and against other people's code; the bound as lie detector."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn

import dualstudent as ds
from conftest import Linear
from dualstudent.data import Images
from dualstudent.evaluation import ask, bound, cohen, fidelity, fitting, logits, wilson
from dualstudent.evaluation.fidelity import evaluating
from dualstudent.ledger import Account
from dualstudent.losses import cross_entropy, disagreement, l1, recover_logits
from dualstudent.networks import Clone, Students

MODULE = importlib.import_module("dualstudent.evaluation.fidelity")  # the name is the function's, too
quick = settings(max_examples=60, deadline=None)
LABEL, TOPK, PROBS = ds.Access.LABEL, ds.Access.TOPK, ds.Access.PROBS


def pictures(
    labels: list[int], classes: int | None = None, shape: tuple[int, int, int] = (1, 8, 8)
) -> Images:
    generator = torch.Generator().manual_seed(len(labels))
    images = torch.randint(0, 256, (len(labels), *shape), generator=generator, dtype=torch.uint8)
    names = tuple("abcdefgh")[: classes or max(labels) + 1]
    return Images("own", "test", images, torch.tensor(labels), names)


def one_hot(labels: list[int], classes: int) -> Tensor:
    return nn.functional.one_hot(torch.tensor(labels), classes).float()


class TestIntervals:
    @quick
    @given(st.integers(1, 2000), st.floats(0, 1))
    def test_wilson_as_scipy_has_it(self, n: int, share: float) -> None:
        hits = round(share * n)
        low, high = wilson(hits, n)
        other = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx((other.low, other.high), abs=1e-9)
        assert 0 <= low <= hits / n + 1e-9
        assert hits / n - 1e-9 <= high <= 1

    def test_wilson_of_nothing_is_anything(self) -> None:
        assert wilson(0, 0) == [0.0, 1.0]

    def test_wilson_with_another_level(self) -> None:
        other = binomtest(7, 20).proportion_ci(0.99, method="wilson")
        assert wilson(7, 20, z=2.5758293035489004) == pytest.approx([other.low, other.high])

    @quick
    @given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
    def test_cohen_as_sklearn_has_it(self, pairs: list[tuple[int, int]]) -> None:
        a, b = (torch.tensor(labels) for labels in zip(*pairs, strict=True))
        if len({label for pair in pairs for label in pair}) == 1:
            assert cohen(a, b) is None  # chance alone agrees fully: 0 / 0
        else:
            expected = cohen_kappa_score(a.numpy(), b.numpy())
            assert cohen(a, b) == pytest.approx(expected, abs=1e-9)
            assert cohen(b, a) == pytest.approx(expected, abs=1e-9)


class TestFidelity:
    def test_by_hand(self) -> None:
        """Target says 0 1 2 0, the clone 0 1 1 2, and right is 0 1 2 2."""
        clone = torch.tensor([[[5.0, 0, 0], [0, 5.0, 0], [0, 5.0, 1], [0, 0, 5.0]]])
        figures = fidelity(clone, one_hot([0, 1, 2, 0], 3), pictures([0, 1, 2, 2], classes=4), access=PROBS)
        assert figures["agreement"] == 0.5
        assert figures["agreement_ci"] == wilson(2, 4)
        assert figures["accuracy"] == 0.75
        assert figures["target_accuracy"] == 0.75
        assert figures["kappa"] == pytest.approx(cohen_kappa_score([0, 1, 2, 0], [0, 1, 1, 2]))
        assert figures["per_class"] == [
            {"class": "a", "images": 2, "agreement": 0.5, "accuracy": 1.0},
            {"class": "b", "images": 1, "agreement": 1.0, "accuracy": 1.0},
            {"class": "c", "images": 1, "agreement": 0.0, "accuracy": 0.5},
            {"class": "d", "images": 0, "agreement": None, "accuracy": None},
        ]

    def test_the_clone_is_the_mean_and_each_student_is_told_apart(self) -> None:
        each = torch.tensor([[[3.0, 0.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 9.0]]])
        figures = fidelity(each, one_hot([0, 1], 2), pictures([0, 0], classes=2), access=PROBS)
        assert figures["agreement"] == 1.0
        assert figures["agreement_each"] == [0.5, 0.5]
        assert figures["accuracy"] == 0.5
        assert figures["accuracy_each"] == [1.0, 0.0]

    def test_divergences_are_of_probabilities(self) -> None:
        p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
        figures = fidelity(q.log()[None] + 7, p, pictures([0, 1]), access=PROBS)
        assert figures["l1"] == pytest.approx((0.5 + 0) / 2)
        assert figures["kl"] == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)

    def test_a_perfect_clone(self) -> None:
        p = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
        labels = p.argmax(1).tolist()
        figures = fidelity(p.log()[None], p, pictures(labels, classes=4), access=PROBS)
        assert figures["agreement"] == figures["accuracy"] == figures["kappa"] == 1.0
        assert (figures["l1"], figures["kl"]) == pytest.approx((0, 0), abs=1e-6)

    def test_opposite_certainties_have_the_largest_l1_and_a_finite_kl(self) -> None:
        clone = torch.tensor([[[0.0, 100.0]]])
        figures = fidelity(clone, torch.tensor([[1.0, 0.0]]), pictures([0], classes=2), access=PROBS)
        assert figures["l1"] == pytest.approx(2)
        assert figures["kl"] == pytest.approx(100)

    @pytest.mark.parametrize("access", [LABEL, TOPK])
    def test_no_divergence_where_probabilities_are_not_revealed(self, access: ds.Access) -> None:
        figures = fidelity(torch.randn(2, 3, 4), one_hot([0, 1, 2], 4), pictures([0, 1, 2]), access=access)
        assert figures["l1"] is None
        assert figures["kl"] is None
        assert figures["agreement"] is not None

    def test_outputs_in_an_order_of_their_own(self) -> None:
        """The clone met class 5 first, then 1: its outputs are named by the target's ids."""
        clone = torch.tensor([[[9.0, 0, -1e4], [0, 9.0, -1e4], [9.0, 0, -1e4]]])
        figures = fidelity(
            clone,
            one_hot([5, 1, 4], 6),
            pictures([5, 0, 5], classes=6),
            access=LABEL,
            ids=torch.tensor([5, 1, -1]),
        )
        assert figures["agreement"] == pytest.approx(2 / 3)
        assert figures["agreement_each"] == [pytest.approx(2 / 3)]
        assert figures["accuracy"] == pytest.approx(2 / 3)
        assert [entry["images"] for entry in figures["per_class"]] == [0, 1, 0, 0, 1, 1]


def students() -> Students:
    torch.manual_seed(0)
    made = Students("digits-cnn", (1, 8, 8), 4, 2)
    made(torch.rand(20, 1, 8, 8))  # statistics of its own, so that the modes differ
    return made


class TestAsking:
    def test_exactly_the_images_are_charged(self, linear: Callable[..., Linear]) -> None:
        target, account, data = linear(), Account("audit", 23), pictures([i % 4 for i in range(23)])
        answers = ask(target, data, account)
        assert answers.shape == (23, 4)
        assert target.seen == account.spent == 23
        assert torch.equal(answers, target(data.pixels()))
        with pytest.raises(ds.Overdraft):
            ask(target, data, account)
        assert target.seen == 23 + 23

    @pytest.mark.parametrize(
        "more", [{"bounds": (-1.0, 1.0)}, {"levels": 4}, {"mean": (0.3,), "std": (0.5,)}]
    )
    def test_the_target_gets_its_own_kind_of_input(self, more: dict[str, Any]) -> None:
        seen: list[Tensor] = []

        class Spy(Linear):
            def __call__(self, x: Tensor, /) -> Tensor:
                seen.append(x)
                return super().__call__(x)

        target, data = Spy(ds.Spec((1, 8, 8), 4, **more)), pictures([0, 1, 2, 3])
        ask(target, data, Account("audit"))
        pixels = data.pixels()
        by_hand = {
            "bounds": 2 * pixels - 1,
            "levels": (3 * pixels).round() / 3,
            "mean": (pixels - 0.3) / 0.5,
        }
        assert torch.allclose(seen[0], by_hand[next(iter(more))], atol=1e-6)

    def test_batches_change_nothing(
        self, linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target, data, clone = linear(), pictures([i % 4 for i in range(23)]), Clone(students())
        whole = ask(target, data, Account("audit")), logits(clone, data, target.spec)
        monkeypatch.setattr(MODULE, "BATCH", 5)
        account = Account("audit")
        parts = ask(target, data, account), logits(clone, data, target.spec)
        assert account.spent == 23
        assert max(target.calls[1:]) == 5
        for a, b in zip(whole, parts, strict=True):
            assert torch.allclose(a, b, atol=1e-5)

    def test_answers_of_different_widths(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Labels:
            spec = ds.Spec((1, 8, 8), None, access=LABEL)
            given = iter([[0, 1], [4, 1], [2]])

            def __call__(self, x: Tensor, /) -> Tensor:
                labels = next(self.given)
                return one_hot(labels, max(labels) + 1)

        monkeypatch.setattr(MODULE, "BATCH", 2)
        answers = ask(Labels(), pictures([0, 1, 4, 1, 2]), Account("audit"))
        assert torch.equal(answers, one_hot([0, 1, 4, 1, 2], 5))

    def test_answers_are_checked(self, linear: Callable[..., Linear]) -> None:
        target = linear()
        target.weight = target.weight * float("nan")
        with pytest.raises(ds.TargetError, match="NaN"):
            ask(target, pictures([0, 1]), Account("audit"))

    def test_images_that_do_not_fit_are_not_shown(self, linear: Callable[..., Linear]) -> None:
        target, account = linear(classes=2), Account("audit")
        with pytest.raises(ds.UserError, match=r"own has images of shape \(1, 4, 8\)"):
            ask(target, pictures([0, 1], shape=(1, 4, 8)), account)
        with pytest.raises(ds.UserError, match="own has 3 classes, the target 2"):
            ask(target, pictures([0, 1, 2]), account)
        assert target.seen == account.spent == 0
        data = pictures([0, 1, 2])
        assert fitting(data, ds.Spec((1, 8, 8), None)) is data
        assert fitting(data, ds.Spec((1, 8, 8), 3)) is data

    def test_looking_at_a_clone_leaves_no_trace(self, linear: Callable[..., Linear]) -> None:
        made, data, spec = students(), pictures([0, 1, 2, 3] * 5), linear().spec
        before = {name: t.clone() for name, t in made.state_dict().items()}
        found = logits(Clone(made), data, spec)
        assert all(module.training for module in made.members.modules())
        assert all(torch.equal(t, before[name]) for name, t in made.state_dict().items())
        assert found.shape == (2, 20, 4)
        assert torch.allclose(found, made.eval()(data.pixels()), atol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_comes_back_after_a_failure_too(self, training: bool) -> None:
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train(training)

        def fail() -> None:
            with evaluating(module):
                assert not any(part.training for part in module.modules())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert all(part.training == training for part in module.modules())


SOFT, HARD = ds.Spec((1, 8, 8), 3), ds.Spec((1, 8, 8), 3, access=LABEL)


def recorded(spec: ds.Spec, seed: int = 0, count: int = 2) -> dict[str, Tensor]:
    """An honest record of one step, as a method would leave it."""
    torch.manual_seed(seed)
    s, p, climbed = torch.randn(count, 6, 3), torch.randn(6, 3).softmax(1), torch.randn(count, 6, 3)
    if spec.access == LABEL:
        p = one_hot(p.argmax(1).tolist(), 3)
        loss = cross_entropy(s, p).mean()
    else:
        loss = l1(s, recover_logits(p)).mean()
    return {
        "student/logits": s,
        "student/answers": p,
        "student/loss": loss,
        "generator/images": torch.rand(6, 1, 8, 8),
        "generator/logits": climbed,
        "gap": disagreement(climbed).mean(),
    }


def faults(metrics: dict[str, Tensor], spec: ds.Spec) -> str:
    found = bound(metrics, spec)
    assert found is not None
    return " / ".join(found["faults"])


class TestBound:
    @quick
    @given(st.integers(0, 2**32), st.integers(2, 4), st.sampled_from([SOFT, HARD]))
    def test_honest_records_have_no_fault(self, seed: int, count: int, spec: ds.Spec) -> None:
        found = bound(recorded(spec, seed, count), spec)
        assert found is not None
        assert found["faults"] == []
        assert found["gap"] <= found["error"] + 1e-6
        if found["error"]:
            assert found["tightness"] == pytest.approx(found["gap"] / found["error"])

    @pytest.mark.parametrize(
        ("offsets", "expected"),
        [((1.0, -1.0), (2, 2, 1)), ((1.0, 3.0), (2, 4, 0.5)), ((2.0, 2.0), (0, 4, 0))],
    )
    def test_tightness_by_hand(
        self, offsets: tuple[float, float], expected: tuple[float, float, float]
    ) -> None:
        p = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]])
        s = torch.stack([recover_logits(p) + offset for offset in offsets])
        loss = torch.tensor(sum(map(abs, offsets)) / 2)
        found = bound({"student/logits": s, "student/answers": p, "student/loss": loss}, SOFT)
        assert found is not None
        assert (found["gap"], found["error"], found["tightness"]) == pytest.approx(expected, abs=1e-5)
        assert (found["space"], found["faults"]) == ("logits", [])

    def test_labels_by_hand(self) -> None:
        """Right is 0 0 1; the first student says 0 1 1, the second 0 1 0."""
        s, p = 3 * torch.stack([one_hot([0, 1, 1], 3), one_hot([0, 1, 0], 3)]), one_hot([0, 0, 1], 3)
        metrics = {"student/logits": s, "student/answers": p, "student/loss": cross_entropy(s, p).mean()}
        found = bound(metrics, HARD)
        assert found is not None
        assert (found["space"], found["faults"]) == ("labels", [])
        assert (found["gap"], found["error"], found["tightness"]) == pytest.approx((1 / 3, 1, 1 / 3))

    def test_two_perfect_students_have_no_tightness(self) -> None:
        p = one_hot([0, 1], 3)
        s = torch.stack([9 * p, 8 * p])
        found = bound(
            {"student/logits": s, "student/answers": p, "student/loss": cross_entropy(s, p).mean()}, HARD
        )
        assert found is not None
        assert (found["gap"], found["error"], found["tightness"]) == (0, 0, None)

    def test_another_method_has_none(self) -> None:
        assert bound({"loss": torch.tensor(1.0)}, SOFT) is None

    @pytest.mark.parametrize("spec", [SOFT, HARD])
    def test_a_loss_in_another_space_is_named(self, spec: ds.Spec) -> None:
        metrics = recorded(spec)
        s, p = metrics["student/logits"], metrics["student/answers"]
        lies = [l1(s.softmax(2), p), cross_entropy(s.softmax(2), p), l1(s, p), torch.tensor([float("nan")])]
        for lie in lies:
            assert "another space" in faults(metrics | {"student/loss": lie.mean()}, spec)
            assert "generator" not in faults(metrics | {"student/loss": lie.mean()}, spec)

    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
    def test_images_that_cannot_be_asked_are_named(self, bounds: tuple[float, float]) -> None:
        spec = ds.Spec((1, 8, 8), 3, bounds)
        for lie in (2.0, -1.5):
            metrics = recorded(spec)
            metrics["generator/images"][0, 0, 0, 0] = lie
            assert "not the images that are asked" in faults(metrics, spec)

    def test_a_gap_in_another_space_is_named(self) -> None:
        metrics = recorded(SOFT)
        lie = disagreement(metrics["generator/logits"].softmax(2)).mean()
        assert "the generator climbed" in faults(metrics | {"gap": lie}, SOFT)
        assert "student" not in faults(metrics | {"gap": lie}, SOFT).split("climbed")[0]
