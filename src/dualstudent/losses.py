"""Losses of the methods: pure functions of tensors, unreduced, the caller reduces.

Axes: s students, b images, k classes. Every ℓ1 distance is a mean over the classes (ℓ1 / k).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def recover_logits(p: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return log p − mean_c(log p), the target's logits up to a constant (Dual Student, section 3).

    Probabilities below 1e-38, the smallest normal float32, are taken as that: about −87 in log p.
    """
    log_p = p.clamp_min(torch.finfo(torch.float32).tiny).log()
    return log_p - log_p.mean(1, keepdim=True)


def l1(s: Float[Tensor, "s b k"], t: Float[Tensor, "b k"]) -> Float[Tensor, "s b"]:
    """Return the mean absolute difference of each student's logits to the target's (eq. 2)."""
    return (s - t).abs().mean(2)


def cross_entropy(s: Float[Tensor, "s b k"], t: Float[Tensor, "b k"]) -> Float[Tensor, "s b"]:
    """Return −Σ t log softmax(s): with one-hot rows the usual loss on labels, with soft rows no argmax."""
    return -(t * F.log_softmax(s, dim=2)).sum(2)


def disagreement(s: Float[Tensor, "s b k"]) -> Float[Tensor, "b"]:
    """Return the mean ℓ1 distance over all pairs of students (eq. 3; for two, ‖S1 − S2‖)."""
    first, second = torch.triu_indices(len(s), len(s), offset=1, device=s.device)
    return (s[first] - s[second]).abs().mean(2).mean(0)
