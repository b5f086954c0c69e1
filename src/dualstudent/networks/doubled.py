"""Nearest ×2 upsampling and a 3×3 convolution in one, with fewer multiplications; a narrow convolution."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dualstudent.networks.winograd import usable

WIDE = 128  # channels in and out from which the way of nine products pays (benchmarks/engine)
SMALL = 16  # pixels of an image up to which half of that is enough
TOGETHER = 512  # pixels worked on at once: what they become stays in the cache
TAPS = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)  # S, w0, w2 of one direction


def doubled(x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "b d u v"]:
    """Return conv3×3(nearest ×2 upsampling of x), zero-padded.

    Four taps a pixel instead of nine: neighbours that fall on one pixel before it is doubled are
    added beforehand, which makes a transposed convolution. Where it is wide, on a CPU: `Doubled`. The
    parameters stay the 3×3 weights: each call adds, and differentiates, anew.
    """
    wide = WIDE if x[0, 0].numel() > SMALL else WIDE // 2
    if min(weight.shape[:2]) >= wide and usable(x):
        return Doubled.apply(x, weight)  # type: ignore[no-any-return, no-untyped-call]
    wide_taps = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))  # w0, w0 + w1, w1 + w2, w2
    taps = F.pad(wide_taps, (0, 0, 0, 1)) + F.pad(wide_taps, (0, 0, 1, 0))
    kernel = taps.flip((2, 3)).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1)


class Doubled(torch.autograd.Function):
    """`doubled` with nine products for four pixels, of which direct convolution takes 36.

    In one direction an even pixel is S x − w0 (x − left), an odd one S x + w2 (right − x), with
    S = w0 + w1 + w2: three products, of x and its differences to both sides.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        (b, _, h, wide), d, u = x.shape, len(w), _products(w)
        y = x.new_empty(b, 2 * h, 2 * wide, d)
        for part, out in zip(_parts(x), torch.split(y, _images(x)), strict=True):
            m = torch.bmm(_differences(part), u.transpose(1, 2)).view(3, 3, len(part), h, wide, d)
            for i, row in enumerate((m[0] - m[1], m[0] + m[2])):
                torch.sub(row[0], row[1], out=out[:, i::2, 0::2])
                torch.add(row[0], row[2], out=out[:, i::2, 1::2])
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad
        u = _products(w)
        dx = torch.empty_like(x, memory_format=torch.channels_last) if need_x else None
        du = torch.zeros_like(u) if need_w else None
        for i, (part, dy) in enumerate(zip(_parts(x), _parts(g, _images(x)), strict=True)):
            dy = dy.permute(0, 2, 3, 1)
            columns = _split(dy, 2).unbind()
            dm = torch.stack([_split(column, 1) for column in columns], 1).flatten(2, 4).flatten(0, 1)
            if du is not None:
                torch.baddbmm(du, dm.transpose(1, 2), _differences(part), out=du)
            if dx is not None:
                b, c, h, wide = part.shape
                dv = torch.bmm(dm, u).view(3, 3, b, h, wide, c)
                _parts(dx)[i].copy_(_merged(_merged(dv, 2), 2).permute(0, 3, 1, 2))
        if du is None:
            return dx, None
        one = TAPS.to(x)
        return dx, (torch.kron(one, one).t() @ du.flatten(1)).view(3, 3, *du.shape[1:]).permute(2, 3, 0, 1)


def _images(x: Tensor) -> int:
    return max(1, TOGETHER // x[0, 0].numel())


def _parts(x: Tensor, images: int | None = None) -> tuple[Tensor, ...]:
    return torch.split(x, images or _images(x))


def _products(w: Tensor) -> Tensor:
    """Return the weights of the nine products, (9, d, c)."""
    one = TAPS.to(w)
    return (torch.kron(one, one) @ w.permute(2, 3, 0, 1).reshape(9, -1)).view(9, *w.shape[:2])


def _differences(x: Tensor) -> Tensor:
    """Return pixels and their differences to both sides, in both directions: (9, b · h · w, c)."""
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    b, h, w, c = x.shape
    v = x.new_empty(3, 3, b, h - 2, w - 2, c)
    middle = x[:, 1:-1]
    for i, rows in enumerate((middle, middle - x[:, :-2], x[:, 2:] - middle)):
        v[i, 0] = rows[:, :, 1:-1]
        torch.sub(rows[:, :, 1:-1], rows[:, :, :-2], out=v[i, 1])
        torch.sub(rows[:, :, 2:], rows[:, :, 1:-1], out=v[i, 2])
    return v.view(9, -1, c)


def _split(g: Tensor, axis: int) -> Tensor:
    """Transpose of (even, odd) = (m0 − m1, m0 + m2) along an axis of (b, h, w, d): stacked m0, m1, m2."""
    even, odd = torch.unflatten(g, axis, (-1, 2)).unbind(axis + 1)
    return torch.stack((even + odd, -even, odd))


def _merged(dv: Tensor, axis: int) -> Tensor:
    """Transpose of (x, x − before, after − x) along an axis: sum over the first dimension."""
    total = dv[0] + dv[1] - dv[2]
    n = total.shape[axis] - 1
    total.narrow(axis, 0, n).sub_(dv[1].narrow(axis, 1, n))
    total.narrow(axis, 1, n).add_(dv[2].narrow(axis, 0, n))
    return total


def narrow(x: Float[Tensor, "b c h w"], weight: Float[Tensor, "1 c 3 3"]) -> Float[Tensor, "b 1 h w"]:
    """Return conv3×3(x), zero-padded, to one channel: one matrix product, then nine images added up."""
    taps = weight.flip((2, 3)).permute(0, 2, 3, 1).reshape(9, -1)
    products = taps @ x.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)
    return F.fold(products, x.shape[2:], 3, padding=1)
