"""Nearest ×2 upsampling and a 3×3 convolution in one, with fewer multiplications; a narrow convolution."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dualstudent.networks.winograd import product, usable

WIDE = 64  # channels in and out from which the way of nine products pays (trials)
TOGETHER = 1024  # pixels worked on at once: what they become stays in the cache
TAPS = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)  # S, w0, w2 of one direction


def doubled(x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "b d u v"]:
    """Return conv3×3(nearest ×2 upsampling of x), zero-padded.

    Four taps a pixel instead of nine: neighbours that fall on one pixel before it is doubled are
    added beforehand, which makes a transposed convolution. Where it is wide, on a CPU: `Doubled`. The
    parameters stay the 3×3 weights: each call adds, and differentiates, anew.
    """
    if min(weight.shape[:2]) >= WIDE and usable(x):
        return Doubled.apply(x, weight)  # type: ignore[no-any-return, no-untyped-call]
    wide_taps = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))  # w0, w0 + w1, w1 + w2, w2
    taps = F.pad(wide_taps, (0, 0, 0, 1)) + F.pad(wide_taps, (0, 0, 1, 0))
    kernel = taps.flip((2, 3)).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1)


class Doubled(torch.autograd.Function):
    """`doubled` with nine products for four pixels, of which direct convolution takes 36.

    In one direction an even pixel is S x − w0 x + w0 left, an odd one S x − w2 x + w2 right, with
    S = w0 + w1 + w2: three products a pixel, with whole rows of pixels in a matrix. Of each, three for
    the other direction.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        (b, _, h, wide), d, u = x.shape, len(w), _products(w)
        y = x.new_empty(b, 2 * h, 2 * wide, d)
        for part, out in zip(_parts(x), torch.split(y, _images(x)), strict=True):
            pixels = _pixels(part)
            rows = part.new_empty(len(part), 2 * h, wide, 3, d)
            _interleave([product(pixels, each).view(-1, h, 3 * wide * d) for each in u], rows.flatten(2), 1)
            _interleave(rows.unbind(3), out, 2)
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
            (b, c, h, wide), d, pixels = part.shape, len(w), _pixels(part)
            drows = part.new_empty(b, 2 * h, wide, 3, d)
            _separate(dy.permute(0, 2, 3, 1), drows.unbind(3), 2)
            dm = part.new_empty(3, b, h, 3 * wide * d)
            _separate(drows.flatten(2), dm.unbind(), 1)
            dm = dm.view(3, len(pixels), 3 * d)
            if du is not None:
                for place, each in zip(du, dm, strict=True):
                    place += product(each.t(), pixels.t())
            if dx is not None:
                one, two, three = (product(each, weights.t()) for each, weights in zip(dm, u, strict=True))
                _parts(dx)[i].copy_(one.add_(two).add_(three).view(b, h, wide, c).permute(0, 3, 1, 2))
        if du is None:
            return dx, None
        taps = TAPS.to(x)
        du = torch.kron(taps, taps).t() @ du.view(9, -1)
        return dx, du.view(3, 3, *w.shape[:2]).permute(2, 3, 0, 1)


def _images(x: Tensor) -> int:
    return max(1, TOGETHER // x[0, 0].numel())


def _parts(x: Tensor, images: int | None = None) -> tuple[Tensor, ...]:
    return torch.split(x, images or _images(x))


def _pixels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _products(w: Tensor) -> Tensor:
    """Return the weights of the nine products, (3 of rows, 3 of columns · d, c)."""
    one = TAPS.to(w)
    return (torch.kron(one, one) @ w.permute(2, 3, 0, 1).reshape(9, -1)).view(3, -1, w.shape[1])


def _interleave(m: Sequence[Tensor], out: Tensor, axis: int) -> None:
    """Write even pixels m0 − m1 + m1 before, and odd ones m0 − m2 + m2 after, along an axis."""
    n = m[0].shape[axis] - 1
    even, odd = torch.unflatten(out, axis, (-1, 2)).unbind(axis + 1)
    torch.sub(m[0], m[1], out=even)
    even.narrow(axis, 1, n).add_(m[1].narrow(axis, 0, n))
    torch.sub(m[0], m[2], out=odd)
    odd.narrow(axis, 0, n).add_(m[2].narrow(axis, 1, n))


def _separate(g: Tensor, dm: Sequence[Tensor], axis: int) -> None:
    """The transpose of `_interleave`: write the gradients of m0, m1, m2."""
    n = dm[0].shape[axis] - 1
    even, odd = torch.unflatten(g, axis, (-1, 2)).unbind(axis + 1)
    torch.add(even, odd, out=dm[0])
    torch.neg(even, out=dm[1])
    dm[1].narrow(axis, 0, n).add_(even.narrow(axis, 1, n))
    torch.neg(odd, out=dm[2])
    dm[2].narrow(axis, 1, n).add_(odd.narrow(axis, 0, n))


class Narrow(torch.autograd.Function):
    """conv3×3(x), zero-padded, to one channel: one matrix product, then nine images added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        products = _nine(w) @ x.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)
        return F.fold(products, x.shape[2:], 3, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        (b, c, h, wide), (need_x, need_w) = x.shape, ctx.needs_input_grad
        around = F.pad(g[:, 0], (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1).reshape(-1, 9)
        dx = product(around, _nine(w).t()).view(b, h, wide, c).permute(0, 3, 1, 2) if need_x else None
        dw = (around.t() @ _pixels(x).view(-1, c)).view(3, 3, 1, c) if need_w else None
        return dx, None if dw is None else dw.permute(2, 3, 0, 1).flip((2, 3))


def _nine(w: Tensor) -> Tensor:
    """Return the weights (9, c) of a 3×3 convolution to one channel, as the pixel they fall on sees them."""
    return w.flip((2, 3)).permute(0, 2, 3, 1).reshape(9, -1)


def narrow(x: Float[Tensor, "b c h w"], weight: Float[Tensor, "1 c 3 3"]) -> Float[Tensor, "b 1 h w"]:
    """Return conv3×3(x), zero-padded, to one channel."""
    return Narrow.apply(x, weight)  # type: ignore[no-any-return, no-untyped-call]
