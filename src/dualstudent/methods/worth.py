"""What asking an image promises, judged by the students alone, and how an image comes to promise more."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualstudent.losses import spread
from dualstudent.methods.procedural import inside
from dualstudent.networks.ensemble import MASKED
from dualstudent.spec import Spec

DOUBT = 0.02  # disagreement that no image is below


def worth(
    logits: Float[Tensor, "s b k"], classes: Float[Tensor, "k"], sure: float, doubtful: float
) -> Float[Tensor, "b"]:
    """Return the logarithm of an image's worth: sure of a class, doubtful which, of a rare one.

    `classes` counts the answers so far; `sure` and `doubtful` are the powers of the first two.
    """
    mean, known = logits.mean(0), logits[0] > MASKED / 2
    centre = (mean * known).sum(1, keepdim=True) / known.sum(1, keepdim=True)
    clear = (((mean - centre) * known) ** 2).sum(1) / known.sum(1)
    doubt = spread(logits) * logits.shape[2] + DOUBT
    share = classes / classes.sum() * (classes > 0).sum()
    rare = (1 / share.clamp(0.1, 10))[mean.argmax(1)]
    return sure / 2 * clear.clamp_min(1e-6).log() + doubtful * doubt.log() + rare.log()


def drawn(worth: Float[Tensor, "b"], images: int) -> Int[Tensor, "n"]:
    """Return so many rows, drawn with chances in proportion to exp(worth), none twice (Gumbel's trick)."""
    luck = -torch.log(-torch.log(torch.rand(len(worth), device=worth.device)))
    return (worth + luck).topk(images).indices


def uphill(
    worth: Callable[[Tensor], Tensor], x: Float[Tensor, "b c h w"], stride: float, spec: Spec
) -> Float[Tensor, "b c h w"]:
    """Return images a step up the gradient of their worth, `stride` long: root mean square, of the range."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        [slope] = torch.autograd.grad(worth(x).sum(), x)
    steep = slope.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    low, high = spec.bounds
    return inside(x.detach() + stride * (high - low) * slope / steep, spec)
