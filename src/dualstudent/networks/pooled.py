"""2×2 max-pooling on a CPU where channels are few, and the convolution in front of it.

A processor multiplies 8 or 16 channels at a time, however few there are, and pooling reads them one by
one. So pooling compares whole rows and every other column; and where no gradient is wanted one
convolution of stride 2, its kernel a pixel wider, makes the four pixels of a window as four times the
channels, of which whole images are compared. The parameters stay those of the convolution.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dualstudent.networks.winograd import usable

FEW = 8  # channels out up to which it pays (trials)


class PooledConv(nn.Conv2d):
    """A convolution that keeps the size, 2×2 max-pooling, which drops an odd row or column, and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d u v"]:
        if self.out_channels > FEW or torch.is_grad_enabled() or not usable(x):
            return pooled(super().forward(x))
        places = [F.pad(self.weight, (j, 1 - j, i, 1 - i)) for j in (0, 1) for i in (0, 1)]
        assert self.bias is not None
        four = F.conv2d(_in_rows(x), _in_rows(torch.cat(places)), self.bias.repeat(4), 2, self.padding)
        left_and_right = torch.maximum(*four.chunk(2, 1))
        return F.relu(torch.maximum(*left_and_right.chunk(2, 1)), inplace=True)


def _in_rows(x: Tensor) -> Tensor:
    """Return a tensor row by row in memory; that of one channel is so anyway, but may not say so."""
    return x.contiguous().flatten().view(x.shape)


class Halved(torch.autograd.Function):
    """2×2 max-pooling of few channels, (b, d, 2h, 2w) to (b, d, h, w): of rows, then of columns.

    The gradient goes to the first of equals; of two that lie across, to the left one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = torch.maximum(*_pairs(x, 2))
        ctx.save_for_backward(x, rows)
        return torch.maximum(*_pairs(rows, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        for x, axis in zip(reversed(ctx.saved_tensors), (3, 2), strict=True):
            out = torch.empty_like(x)
            _to_the_larger(g, _pairs(x, axis), _pairs(out, axis))
            g = out
        return g


def _pairs(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return every other row or column, and those between."""
    first, second = torch.unflatten(x, axis, (-1, 2)).unbind(axis + 1)
    return first, second


def _to_the_larger(g: Tensor, pair: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Write the gradient of the larger of two for both."""
    second = torch.ops.aten.threshold_backward(g, pair[1] - pair[0], 0)
    out[1].copy_(second)  # not at once: what is written to every other place takes five times as long
    torch.sub(g, second, out=out[0])


def pooled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c u v"]:
    """Return 2×2 max-pooling of the ReLU, in the order in which the ReLU has a quarter to do: they commute.

    On a CPU in float32, which takes half as long as bfloat16, and without gradients by maxima of
    neighbours; of few channels with gradients, too.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.relu(F.max_pool2d(x, 2), inplace=True)
    even = x.shape[2] % 2 == x.shape[3] % 2 == 0
    if even and not x.requires_grad:
        return F.relu(torch.maximum(*_pairs(torch.maximum(*_pairs(x, 2)), 3)), inplace=True)
    if even and x.shape[1] <= FEW and usable(x):
        return F.relu(Halved.apply(x), inplace=True)  # type: ignore[no-untyped-call]
    wide = x.float() if x.dtype == torch.bfloat16 else x
    return F.relu(F.max_pool2d(wide, 2).to(x.dtype), inplace=True)
