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


def kl(s: Float[Tensor, "s b k"], t: Float[Tensor, "b k"]) -> Float[Tensor, "s b"]:
    """Return KL(t ‖ softmax(s)), nats: probabilities of the target on one side, logits on the other."""
    entropy: Tensor = torch.special.entr(t).sum(1)
    return cross_entropy(s, t) - entropy


def distillation(
    s: Float[Tensor, "s b k"], t: Float[Tensor, "b k"], temperature: float
) -> Float[Tensor, "s b"]:
    """Return T² KL(softmax(t / T) ‖ softmax(s / T)), nats, of logits (Hinton et al. 2015, section 2)."""
    return temperature**2 * kl(s / temperature, (t / temperature).softmax(1))


def multi_margin(s: Float[Tensor, "s b k"], t: Float[Tensor, "b k"]) -> Float[Tensor, "s b"]:
    """Return the mean over classes of max(0, 1 − s_label + s_other), the label being the top of a row."""
    label = t.argmax(1)[None, :, None].expand(len(s), -1, 1)
    margins = (1 - s.gather(2, label) + s).clamp_min(0)
    return (margins.sum(2) - margins.gather(2, label).squeeze(2)) / s.shape[2]


def spread(s: Float[Tensor, "s b k"]) -> Float[Tensor, "b"]:
    """Return the mean over classes of the students' standard deviation of probabilities (DisGUIDE).

    Where they are all alike, a masked class for one, its gradient is 0.
    """
    variance = s.softmax(2).var(0)
    apart = variance > 0
    return (torch.where(apart, variance, 1).sqrt() * apart).mean(1)


def imbalance(s: Float[Tensor, "s b k"]) -> Float[Tensor, ""]:
    """Return Σ ω log ω of the mean class probabilities ω of a batch: 0 for one class, −log k for all."""
    share = s.softmax(2).mean((0, 1)).clamp_min(torch.finfo(torch.float32).tiny)
    return (share * share.log()).sum()
