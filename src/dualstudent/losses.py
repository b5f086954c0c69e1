"""Losses of the methods: pure functions of tensors, unreduced, the caller reduces.

Axes: s students, b images, k classes. Every ℓ1 distance is a mean over the classes (ℓ1 / k).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

UNSEEN = 0.005  # the most that a zero is taken for where nothing is lacking: rounded to percents
ROUNDING = 1e-5  # of float32 sums: what a row lacks by that is nothing


def recover_logits(p: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return log p − mean_c(log p), the target's logits up to a constant (Dual Student, section 3).

    Probabilities below 1e-38, the smallest normal float32, are taken as that: about −87 in log p.
    """
    log_p = p.clamp_min(torch.finfo(torch.float32).tiny).log()
    return log_p - log_p.mean(1, keepdim=True)


def filled(p: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return rows whose zeros, of rounding or of classes kept back, are likely values instead.

    A zero is an equal share of what its row lacks to 1; else half of the least probability of the batch,
    which tells of its rounding, 0.005 at most, and all together what the others may have been rounded up by.
    """
    known = p > 0
    zeros = (~known).sum(1, keepdim=True).clamp_min(1)
    least = torch.where(known, p, 1).amin(1, keepdim=True)
    half = (least.amin() / 2).clamp_max(UNSEEN)
    lacking = 1 - p.sum(1, keepdim=True)
    lacking = torch.where(lacking > ROUNDING, lacking, 0)
    share = torch.maximum(lacking, torch.minimum(half * zeros, lacking + half * known.sum(1, keepdim=True)))
    return torch.where(known, p, torch.minimum(share / zeros, least))


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
