"""Losses by hand, by finite differences and by the inequality that the method rests on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualstudent.losses import cross_entropy, disagreement, filled, l1, recover_logits

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestValues:
    def test_l1_is_the_mean_over_classes(self) -> None:
        s = torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]])
        assert l1(s, torch.tensor([[1.0, 0.0, -1.0]])).tolist() == [[2.0], [pytest.approx(2 / 3)]]

    def test_cross_entropy_of_a_label(self) -> None:
        s = torch.tensor([[[0.0, math.log(3)]], [[0.0, 0.0]]])
        label = torch.tensor([[0.0, 1.0]])
        assert cross_entropy(s, label).flatten().tolist() == pytest.approx([math.log(4 / 3), math.log(2)])

    def test_cross_entropy_of_soft_rows_is_no_argmax(self) -> None:
        s, soft = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[0.4, 0.6]])
        by_hand = -0.4 * math.log(1 / 4) - 0.6 * math.log(3 / 4)
        assert cross_entropy(s, soft).item() == pytest.approx(by_hand)
        assert cross_entropy(s, soft).item() > cross_entropy(s, soft.round()).item() + 0.1

    def test_cross_entropy_of_huge_logits_is_finite(self) -> None:
        s, label = torch.tensor([[[1e4, -1e4]]]), torch.tensor([[0.0, 1.0]])
        assert cross_entropy(s, label).item() == pytest.approx(2e4)

    def test_filled_leaves_what_is_above_zero(self) -> None:
        p = normal(5, 7).softmax(1)
        assert torch.equal(filled(p), p)

    def test_zeros_of_rounded_answers_are_below_half_of_what_they_are_rounded_to(self) -> None:
        p = torch.tensor([[0.999, 0.001, 0, 0], [1, 0, 0, 0], [0.5, 0.4, 0.1, 0]], dtype=torch.float64)
        zeros = [filled(p)[row, 3].item() for row in range(3)]
        assert zeros == pytest.approx([0.0005, 0.0005 / 3, 0.0005])

    @quick
    @given(seeds, st.integers(2, 400), st.integers(1, 5))
    def test_filled_rows_sum_to_no_more_than_rounding_allows(self, seed: int, k: int, decimals: int) -> None:
        exact = (8 * normal(8, k, seed=seed)).softmax(1)
        p = exact.mul(10**decimals).round().div(10**decimals)
        p = p[p.sum(1) > 0]
        known = (p > 0).sum(1)
        half = min(p[p > 0].min().item() / 2, 0.005)
        allowed = p.sum(1).clamp_min(1) + known * half + 1e-6
        assert (filled(p).sum(1) <= allowed).all()

    def test_where_nothing_but_certainty_is_answered_zeros_are_small_all_the_same(self) -> None:
        assert filled(torch.eye(3)).tolist() == (torch.eye(3) + 0.0025 * (1 - torch.eye(3))).tolist()

    def test_classes_kept_back_share_what_a_row_lacks(self) -> None:
        p = torch.tensor([[0.6, 0.2, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0]], dtype=torch.float64)
        assert filled(p)[:, 2:].tolist() == [[pytest.approx(0.1)] * 2, [0.005] * 2]

    def test_what_sums_lack_by_their_own_rounding_is_nothing(self) -> None:
        p = torch.tensor([[1 - 2e-7, 1e-7, 0.0]])
        assert filled(p)[0, 2].item() == pytest.approx(5e-8)

    @quick
    @given(seeds, st.integers(1, 6))
    def test_filled_logits_are_in_order_and_finite(self, seed: int, decimals: int) -> None:
        p = (5 * normal(8, 6, seed=seed)).softmax(1).mul(10**decimals).round().div(10**decimals)
        logits = recover_logits(filled(p).float())
        assert logits.isfinite().all()
        more = p[:, :, None] > p[:, None, :]
        assert (logits[:, :, None] >= logits[:, None, :])[more].all()

    def test_disagreement_of_two(self) -> None:
        s = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 2.0], [0.0, -4.0]]])
        assert disagreement(s).tolist() == [1.0, 2.0]

    @quick
    @given(seeds, st.integers(2, 5))
    def test_disagreement_is_the_mean_of_all_pairs(self, seed: int, students: int) -> None:
        s = normal(students, 3, 4, seed=seed)
        pairs = [disagreement(s[[i, j]]) for i in range(students) for j in range(i)]
        assert torch.allclose(disagreement(s), torch.stack(pairs).mean(0))

    def test_nothing_is_reduced(self) -> None:
        s, t = normal(3, 5, 7), normal(5, 7).softmax(1)
        assert l1(s, t).shape == cross_entropy(s, t).shape == (3, 5)
        assert disagreement(s).shape == (5,)
        assert recover_logits(t).shape == (5, 7)
        for loss in (l1, cross_entropy):  # each entry is of its own student and image
            assert torch.allclose(loss(s, t)[1, 2], loss(s[1:2, 2:3], t[2:3])[0, 0])
        assert torch.allclose(disagreement(s)[2], disagreement(s[:, 2:3])[0])


class TestRecoverLogits:
    @quick
    @given(seeds, st.integers(2, 100), st.floats(0.01, 8))
    def test_finds_the_logits_up_to_a_constant(self, seed: int, classes: int, scale: float) -> None:
        logits = scale * normal(4, classes, seed=seed) + 3
        mean_free = logits - logits.mean(1, keepdim=True)
        assert torch.allclose(recover_logits(logits.softmax(1)), mean_free, atol=1e-9)
        single = recover_logits(logits.float().softmax(1))
        assert torch.allclose(single.double(), mean_free, atol=1e-3)
        assert torch.allclose(recover_logits(logits.softmax(1)).softmax(1), logits.softmax(1))

    def test_a_zero_is_the_smallest_float32(self) -> None:
        found = recover_logits(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        assert torch.isfinite(found).all()
        assert (found[0, 0] - found[0, 1]).item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))
        assert found.sum().item() == pytest.approx(0, abs=1e-4)


class TestInequality:
    @quick
    @given(seeds, st.integers(2, 4), st.floats(0, 100))
    def test_students_differ_by_no_more_than_both_miss(self, seed: int, students: int, scale: float) -> None:
        """Eq. 4, for every image: the disagreement is at most the sum of two distances to the target."""
        s, p = scale * normal(students, 6, 5, seed=seed), normal(6, 5, seed=seed + 1).softmax(1)
        misses = l1(s, recover_logits(p))
        if students == 2:
            assert (disagreement(s) <= misses.sum(0) + 1e-9).all()
        assert (disagreement(s) <= 2 * misses.mean(0) + 1e-9).all()

    def test_it_is_tight_where_the_target_lies_between(self) -> None:
        t = recover_logits(normal(6, 5).softmax(1))
        s = torch.stack([t + 1, t - 2])
        assert torch.allclose(disagreement(s), l1(s, t).sum(0))


class TestGradients:
    def test_l1(self) -> None:
        t = normal(3, 4)
        away = normal(2, 3, 4, seed=1)
        s = t + away.sign() * (0.1 + away.abs())
        assert torch.autograd.gradcheck(l1, (s.requires_grad_(), t.requires_grad_()))

    def test_cross_entropy(self) -> None:
        s, t = normal(2, 3, 4).requires_grad_(), normal(3, 4, seed=1).softmax(1).requires_grad_()
        assert torch.autograd.gradcheck(cross_entropy, (s, t))

    @pytest.mark.parametrize("students", [2, 3])
    def test_disagreement(self, students: int) -> None:
        apart = torch.arange(students).view(-1, 1, 1) + 0.3 * normal(students, 3, 4).tanh()
        assert torch.autograd.gradcheck(disagreement, (apart.requires_grad_(),))

    def test_recover_logits(self) -> None:
        assert torch.autograd.gradcheck(recover_logits, (normal(3, 4).softmax(1).requires_grad_(),))

    def test_each_student_learns_from_its_own_loss(self) -> None:
        s, t = normal(2, 3, 4).requires_grad_(), normal(3, 4, seed=1).softmax(1)
        (gradient,) = torch.autograd.grad(cross_entropy(s, t)[0].sum(), s)
        assert gradient[0].abs().sum() > 0
        assert gradient[1].abs().sum() == 0
