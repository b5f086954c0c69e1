"""Gradients of what can only be asked: forward differences along random directions."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dualstudent.errors import UserError
from dualstudent.spec import Spec


def forward_differences(
    values: Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n"]],
    x: Float[Tensor, "b c h w"],
    *,
    directions: int,
    radius: float,
) -> Float[Tensor, "b c h w"]:
    """Estimate the gradient of each image's value at x, in one question of (directions + 1) · b images.

    The mean over random unit vectors u of D · (f(x + radius u) − f(x)) / radius · u, with D pixels an
    image (DFME, section 3.3; MAZE, section 4.2).
    """
    u = torch.randn(directions, *x.shape, device=x.device, dtype=x.dtype)
    u /= u.flatten(2).norm(dim=2).view(directions, -1, 1, 1, 1)
    points = torch.cat([x[None], x + radius * u]).flatten(0, 1)
    at = values(points).view(directions + 1, -1)
    slope = (at[1:] - at[0]) * (x[0].numel() / radius)
    return (slope[..., None, None, None] * u).mean(0)


def fine_enough(radius: float, spec: Spec, *, allow_coarse: bool) -> None:
    """Raise UserError where a step of `radius` drowns in the rounding to the levels of a target.

    A step along a unit vector moves each of D pixels by radius / √D or so, of the range from −1 to 1
    that tanh has; half a level is the least that rounding does not hide.
    """
    if spec.levels is None or allow_coarse:
        return
    least = math.prod(spec.shape) ** 0.5 / (spec.levels - 1)
    if radius < least:
        raise UserError(
            f"steps of {radius:g} move a pixel by less than half of the target's {spec.levels} levels, and"
            f" drown in rounding: --radius {least:.2g} or more, or --allow-coarse"
        )
