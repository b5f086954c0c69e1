"""A convolution to few channels and the 2×2 max-pooling behind it, on a CPU: a window's pixels at once.

A processor multiplies 8 or 16 channels at a time, however few there are, and pooling reads them one by
one. So one convolution of stride 2, its kernel a pixel wider, makes the four pixels of a window as four
times the channels, of which whole images are compared. The parameters stay those of the convolution.
"""

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
        if self.out_channels > FEW or x.requires_grad or not usable(x):  # no gain on the way to the image
            return pooled(super().forward(x))
        places = [F.pad(self.weight, (j, 1 - j, i, 1 - i)) for j in (0, 1) for i in (0, 1)]
        assert self.bias is not None
        four = F.conv2d(_in_rows(x), _in_rows(torch.cat(places)), self.bias.repeat(4), 2, self.padding)
        y: Tensor = Largest.apply(four)  # type: ignore[no-untyped-call]
        return F.relu(y, inplace=True)


def _in_rows(x: Tensor) -> Tensor:
    """Return a tensor row by row in memory; that of one channel is so anyway, but may not say so."""
    return x.contiguous().flatten().view(x.shape)


class Largest(torch.autograd.Function):
    """The largest of four, (b, 4·d, h, w) to (b, d, h, w): left above and below, right above and below.

    The gradient goes to the first of equals, row by row, as in torch's max-pooling.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = torch.maximum(*x.chunk(2, 1))
        ctx.save_for_backward(x, rows)
        return torch.maximum(*rows.chunk(2, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, rows = ctx.saved_tensors
        return _to_the_larger(_to_the_larger(g.contiguous(), rows), x)


def _to_the_larger(g: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of the larger half of channels."""
    first, second = x.chunk(2, 1)
    out = torch.empty_like(x)
    one, two = out.chunk(2, 1)
    torch.ops.aten.threshold_backward.grad_input(g, second - first, 0, grad_input=two)
    torch.sub(g, two, out=one)
    return out


def pooled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c u v"]:
    """Return 2×2 max-pooling of the ReLU, in the order in which the ReLU has a quarter to do: they commute.

    On a CPU in float32, which takes half as long as bfloat16, and without gradients by maxima of
    neighbours, which take a tenth with few channels.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.relu(F.max_pool2d(x, 2), inplace=True)
    even = x.shape[2] % 2 == x.shape[3] % 2 == 0
    if even and not x.requires_grad:
        x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
        return F.relu(torch.maximum(x[..., ::2], x[..., 1::2]), inplace=True)
    wide = x.float() if x.dtype == torch.bfloat16 else x
    return F.relu(F.max_pool2d(wide, 2).to(x.dtype), inplace=True)
