"""What asking an image promises, judged by the students alone, and how an image comes to promise more."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dualstudent.losses import spread
from dualstudent.methods.base import frozen
from dualstudent.methods.procedural import inside
from dualstudent.networks import Students
from dualstudent.networks.ensemble import MASKED
from dualstudent.programs import call
from dualstudent.spec import Spec

Worth = Callable[[Tensor, Tensor], Tensor]  # logits (s, b, k), answers of each class (k) -> (b)
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
    alone = len(logits) == 1  # then nobody disagrees
    doubt = DOUBT + (torch.zeros_like(clear) if alone else spread(logits) * logits.shape[2])
    share = classes / classes.sum() * (classes > 0).sum()
    rare = (1 / share.clamp(0.1, 10))[mean.argmax(1)]
    return sure / 2 * clear.clamp_min(1e-6).log() + doubtful * doubt.log() + rare.log()


def best(
    students: Students, value: Worth, x: Float[Tensor, "b c h w"], classes: Float[Tensor, "k"], images: int
) -> Float[Tensor, "n c h w"]:
    """Return so many images, drawn with chances in proportion to exp(value), none twice (Gumbel's trick)."""

    def program(x: Tensor, classes: Tensor) -> tuple[Tensor]:
        return (value(students(x), classes),)

    with torch.no_grad():
        [promised] = call("promise", program, x, classes)
    luck = -torch.log(-torch.log(torch.rand(len(x), device=x.device)))
    return x[(promised + luck).topk(images).indices]


def climbed(
    students: Students,
    value: Worth,
    x: Float[Tensor, "b c h w"],
    classes: Float[Tensor, "k"],
    stride: float,
    spec: Spec,
) -> Float[Tensor, "b c h w"]:
    """Return images a step up the gradient of their value: `stride`, root mean square, of the range."""

    def program(x: Tensor, classes: Tensor) -> tuple[Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            [slope] = torch.autograd.grad(value(students(x), classes).sum(), x)
        steep = slope.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        low, high = spec.bounds
        return (inside(x.detach() + stride * (high - low) * slope / steep, spec),)

    with frozen(students):
        [x] = call("uphill", program, x, classes)
    return x
