"""Convolutions on a CPU with fewer multiplications: tiles are transformed, multiplied, transformed back.

A tile of pixels is turned into Bᵀ x B, the 3×3 weights into G w Gᵀ; their products, one matrix product
over channels for each place, become pixels again by Aᵀ m A. Both gradients are the transposed steps.
Two such schemes:

- `CONV`, Winograd's F(4×4, 3×3) for a 3×3 convolution: 36 products for 16 pixels instead of 144
  (Lavin and Gray 2016, arXiv 1509.09308). In float32 off by about 1e-5 of the largest output (direct:
  1e-6), in float64 by 1e-14.
- `DOUBLED`, for nearest ×2 upsampling and a 3×3 convolution: 9 products for 4 pixels instead of 36.
  An even pixel is S x − w0 (x − left), an odd one S x + w2 (right − x), with S = w0 + w1 + w2.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Matrix = tuple[tuple[int | float, ...], ...]


@dataclass(frozen=True)
class Scheme:
    """Tiles of `size` pixels, `step` apart, beginning one pixel outside; each becomes `out` pixels."""

    size: int
    step: int
    out: int
    together: int  # tiles transformed at once: what they become stays in the cache
    b: Matrix
    g: Matrix
    a: Matrix

    def matrix(self, rows: Matrix, like: Tensor) -> Tensor:
        """Return the transform of both directions at once."""
        one = torch.tensor(rows, dtype=like.dtype)
        return torch.kron(one, one)


CONV = Scheme(
    6,
    4,
    4,
    256,
    (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)
DOUBLED = Scheme(
    3,
    1,
    2,
    512,
    ((0, 1, 0), (-1, 1, 0), (0, -1, 1)),
    ((1, 1, 1), (1, 0, 0), (0, 0, 1)),
    ((1, -1, 0), (1, 0, 1)),
)
WIDE = 128  # channels in and out from which both pay, at batch 64 to 256 (benchmarks/engine)


class WideConv(nn.Conv2d):
    """A 3×3 convolution, stride 1, padding 1; on a CPU and where it is wide enough, Winograd's way.

    Without bias, until a BatchNorm is folded into it.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        if min(self.weight.shape[:2]) < WIDE or not usable(x):
            return super().forward(x)
        y: Tensor = Tiled.apply(x, self.weight, CONV)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y.add_(self.bias.view(-1, 1, 1))


def usable(x: Tensor) -> bool:
    """Return whether the schemes of this file are of use: on a CPU, in full precision, not compiled."""
    exact = x.dtype.itemsize >= 4 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and exact and not torch.compiler.is_compiling()


class Tiled(torch.autograd.Function):
    """The convolution of a scheme for x (b, c, h, w) and w (d, c, 3, 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, scheme: Scheme) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.scheme, d, u = scheme, len(w), _weights(w, scheme)
        size = [side * scheme.out // scheme.step for side in x.shape[2:]]
        y = torch.empty(len(x), d, *size, dtype=x.dtype, memory_format=torch.channels_last)
        a = scheme.matrix(scheme.a, x)
        for part, place in zip(_parts(x, scheme), _parts(y, scheme, scheme.out), strict=True):
            m = torch.bmm(_transformed(part, scheme), u)
            rows, columns = _grid(part, scheme.step)
            pixels = (a @ m.flatten(1)).view(scheme.out, scheme.out, len(part), rows, columns, d)
            pixels = pixels.permute(2, 3, 0, 4, 1, 5).reshape(len(part), rows * scheme.out, -1, d)
            place.copy_(pixels[:, : size[0], : size[1]].permute(0, 3, 1, 2))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, w), scheme = ctx.saved_tensors, ctx.scheme
        need_x, need_w, _ = ctx.needs_input_grad
        u, (c, d) = _weights(w, scheme), (w.shape[1], len(w))
        a, b = scheme.matrix(scheme.a, x).t(), scheme.matrix(scheme.b, x)
        dx = torch.empty_like(x, memory_format=torch.channels_last) if need_x else None
        du = torch.zeros_like(u) if need_w else None
        parts = zip(_parts(x, scheme), _parts(g, scheme, scheme.out), strict=True)
        for i, (part, dy) in enumerate(parts):
            dm = (a @ _tiles(dy, scheme.out, scheme.out, 0)).view(len(u), -1, d)
            if du is not None:
                torch.baddbmm(du, _transformed(part, scheme).transpose(1, 2), dm, out=du)
            if dx is not None:
                dv = b.t() @ torch.bmm(dm, u.transpose(1, 2)).flatten(1)
                _parts(dx, scheme)[i].copy_(_overlapped(dv, part, scheme))
        if du is None:
            return dx, None, None
        dw = scheme.matrix(scheme.g, x).t() @ du.flatten(1)
        return dx, dw.view(3, 3, c, d).permute(3, 2, 0, 1), None


def _grid(x: Tensor, step: int) -> tuple[int, int]:
    return -(-x.shape[2] // step), -(-x.shape[3] // step)


def _parts(x: Tensor, scheme: Scheme, step: int | None = None) -> tuple[Tensor, ...]:
    """Return the images of a batch, some at a time."""
    rows, columns = _grid(x, step or scheme.step)
    return torch.split(x, max(1, scheme.together // (rows * columns)))


def _transformed(x: Tensor, scheme: Scheme) -> Tensor:
    """Return Bᵀ x B of all tiles as (places, tiles, c)."""
    if scheme is not DOUBLED:
        v = scheme.matrix(scheme.b, x) @ _tiles(x, scheme.size, scheme.step, 1)
        return v.view(scheme.size**2, -1, x.shape[1])
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # pixels, and their differences to both sides
    b, h, w, c = x.shape
    v = x.new_empty(3, 3, b, h - 2, w - 2, c)
    middle = x[:, 1:-1]
    for i, rows in enumerate((middle, middle - x[:, :-2], x[:, 2:] - middle)):
        v[i, 0] = rows[:, :, 1:-1]
        torch.sub(rows[:, :, 1:-1], rows[:, :, :-2], out=v[i, 1])
        torch.sub(rows[:, :, 2:], rows[:, :, 1:-1], out=v[i, 2])
    return v.view(9, -1, c)


def _tiles(x: Tensor, size: int, step: int, edge: int) -> Tensor:
    """Return tiles (size², tiles · channels); the first begins `edge` pixels outside."""
    rows, columns = _grid(x, step)
    x = x.permute(0, 2, 3, 1)
    over = [
        step * (n - 1) + size - edge - length for n, length in ((columns, x.shape[2]), (rows, x.shape[1]))
    ]
    x = F.pad(x, (0, 0, edge, over[0], edge, over[1]))
    return x.unfold(1, size, step).unfold(2, size, step).permute(4, 5, 0, 1, 2, 3).reshape(size * size, -1)


def _weights(w: Tensor, scheme: Scheme) -> Tensor:
    """Return G w Gᵀ as (places, c, d)."""
    u = scheme.matrix(scheme.g, w) @ w.permute(2, 3, 1, 0).reshape(9, -1)
    return u.view(-1, w.shape[1], len(w))


def _overlapped(tiles: Tensor, like: Tensor, scheme: Scheme) -> Tensor:
    """Add tiles up where they overlap and cut the margin off: (b, c, h, w)."""
    (rows, columns), (images, channels, height, width) = _grid(like, scheme.step), like.shape
    size, step = scheme.size, scheme.step
    tiles = tiles.view(size, size, images, rows, columns, channels)
    high, wide = step * (rows - 1), step * (columns - 1)
    total = tiles.new_zeros(images, high + size, wide + size, channels)
    for i in range(size):
        for j in range(size):
            total[:, i : i + high + 1 : step, j : j + wide + 1 : step] += tiles[i, j]
    return total[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2)
