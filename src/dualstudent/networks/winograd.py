"""Wide 3×3 convolutions on a CPU by Winograd's F(4×4, 3×3): a quarter of the multiplications.

Lavin and Gray 2016 (arXiv 1509.09308): tiles of 6×6 pixels, 4 apart, are transformed by Bᵀ x B, the
weights by G w Gᵀ; their products, one matrix product for each of 36 places, are turned into 4×4 pixels
by Aᵀ m A. Both gradients are the transposed steps. In float32 an output is off by about 1e-5 of the
largest one (direct convolution: 1e-6), in float64 by 1e-14.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_B += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
_G += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
B2, G2, A2 = (torch.kron(m, m) for m in (torch.tensor(rows, dtype=torch.float64) for rows in (_B, _G, _A)))
WIDE = 128  # channels in and out from which it pays, at batch 64 to 256 (benchmarks/engine)
TILES = 256  # tiles transformed together: what they become stays in the cache


class WideConv(nn.Conv2d):
    """A 3×3 convolution, stride 1, padding 1; on a CPU and where it is wide enough, Winograd's way.

    Without bias, until a BatchNorm is folded into it.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        if min(self.weight.shape[:2]) < WIDE or not usable(x):
            return super().forward(x)
        y: Tensor = Winograd.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y.add_(self.bias.view(-1, 1, 1))


def usable(x: Tensor) -> bool:
    """Return whether our own ways to convolve are of use: on a CPU, in full precision, not compiled."""
    exact = x.dtype.itemsize >= 4 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and exact and not torch.compiler.is_compiling()


class Winograd(torch.autograd.Function):
    """conv2d(x, w, padding=1) for x (b, c, h, w) and w (d, c, 3, 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        u = _weights(w)
        out = torch.empty(len(x), len(w), *x.shape[2:], dtype=x.dtype, memory_format=torch.channels_last)
        for part, place in zip(_parts(x), _parts(out), strict=True):
            m = torch.bmm(_transform(B2, _tiles(part, 6), x.shape[1]), u.transpose(1, 2))
            rows, columns = _grid(part)
            y = (A2.to(x) @ m.flatten(1)).view(4, 4, len(part), rows, columns, len(w))
            y = y.permute(2, 3, 0, 4, 1, 5).reshape(len(part), 4 * rows, 4 * columns, len(w))
            place.copy_(y[:, : x.shape[2], : x.shape[3]].permute(0, 3, 1, 2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad
        u = _weights(w)
        dx = torch.empty_like(x, memory_format=torch.channels_last) if need_x else None
        du = torch.zeros_like(u) if need_w else None
        for i, (part, dy) in enumerate(zip(_parts(x), _parts(g), strict=True)):
            dm = _transform(A2.t(), _tiles(dy, 4), len(w))
            if du is not None:
                v = _transform(B2, _tiles(part, 6), x.shape[1])
                torch.baddbmm(du, dm.transpose(1, 2), v, out=du)
            if dx is not None:
                dv = B2.t().to(x) @ torch.bmm(dm, u).flatten(1)
                _parts(dx)[i].copy_(_overlapped(dv, part))
        if du is None:
            return dx, None
        return dx, (G2.t().to(x) @ du.flatten(1)).view(3, 3, *du.shape[1:]).permute(2, 3, 0, 1)


def _grid(x: Tensor) -> tuple[int, int]:
    return -(-x.shape[2] // 4), -(-x.shape[3] // 4)


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    rows, columns = _grid(x)
    return torch.split(x, max(1, TILES // (rows * columns)))


def _tiles(x: Tensor, size: int) -> Tensor:
    """Return tiles (size², tiles · channels) of size×size pixels, 4 apart."""
    rows, columns = _grid(x)
    edge = (size - 4) // 2
    x = x.permute(0, 2, 3, 1)
    x = F.pad(x, (0, 0, edge, 4 * columns + edge - x.shape[2], edge, 4 * rows + edge - x.shape[1]))
    return x.unfold(1, size, 4).unfold(2, size, 4).permute(4, 5, 0, 1, 2, 3).reshape(size * size, -1)


def _transform(matrix: Tensor, tiles: Tensor, channels: int) -> Tensor:
    return (matrix.to(tiles) @ tiles).view(36, -1, channels)


def _weights(w: Tensor) -> Tensor:
    """Return G w Gᵀ as (36, d, c)."""
    return (G2.to(w) @ w.permute(2, 3, 0, 1).reshape(9, -1)).view(36, *w.shape[:2])


def _overlapped(tiles: Tensor, like: Tensor) -> Tensor:
    """Add 6×6 tiles up where they overlap and cut the margin off: (b, c, h, w)."""
    (rows, columns), (images, channels, height, width) = _grid(like), like.shape
    tiles = tiles.view(6, 6, images, rows, columns, channels)
    total = tiles.new_zeros(images, 4 * rows + 2, 4 * columns + 2, channels)
    for i in range(6):
        for j in range(6):
            total[:, i : i + 4 * rows - 3 : 4, j : j + 4 * columns - 3 : 4] += tiles[i, j]
    return total[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2)
