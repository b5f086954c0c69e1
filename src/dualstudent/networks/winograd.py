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
INNER = B2.view(36, 6, 6)[:, 1:5, 1:5].reshape(36, 16)  # of tiles whose margin is zero
WIDE, SMALL = 128, 32  # channels in and out from which it pays; of images that are one tile
SIDE = 3  # pixels high and wide from which it pays: of smaller images a tile is mostly margin
WIDER = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
TILES = 1 << 16  # tiles times channels transformed together: what they become stays in the cache


class WideConv(nn.Conv2d):
    """A 3×3 convolution, stride 1, padding 1; on a CPU and where it is wide enough, Winograd's way.

    Without bias, until a BatchNorm is folded into it.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        channels, least = min(self.weight.shape[:2]), SMALL if _one(x) else WIDE
        if channels < least or min(x.shape[2:]) < SIDE or not usable(x):
            return super().forward(x)
        y: Tensor = Winograd.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y.add_(self.bias.view(-1, 1, 1))


def usable(x: Tensor) -> bool:
    """Return whether our own ways to convolve are of use: on a CPU, in full precision, not compiled."""
    exact = x.dtype.itemsize >= 4 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and exact and not torch.compiler.is_compiling()


def product(x: Float[Tensor, "m k"], w: Float[Tensor, "n k"]) -> Float[Tensor, "m n"]:
    """Return x wᵀ, without a graph; where there is AVX-512 by oneDNN, as MKL has it for one maker only."""
    if not WIDER or x.dtype != torch.float32:
        return x @ w.t()
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")  # type: ignore[no-any-return]


class Winograd(torch.autograd.Function):
    """conv2d(x, w, padding=1) for x (b, c, h, w) and w (d, c, 3, 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        u = _weights(w)
        rows, columns = _grid(x)
        whole = len(x), len(w), 4 * rows, 4 * columns
        out = torch.empty(whole, dtype=x.dtype, memory_format=torch.channels_last)
        places = out.permute(0, 2, 3, 1).view(len(x), rows, 4, columns, 4, len(w))
        kept: list[Tensor] = []  # what the weights' gradient needs of x
        wide = max(w.shape[:2])
        for part in _parts(x, wide):
            v = _transform(_seen(x), _tiles(part, 4 if _one(x) else 6), x.shape[1])
            kept += [v] if ctx.needs_input_grad[1] else []
            m = _products(v, u)
            y = product(A2.to(x), m.flatten(1).t()).view(4, 4, len(part), rows, columns, len(w))
            places[: len(part)].copy_(y.permute(2, 3, 0, 4, 1, 5))
            places = places[len(part) :]
        ctx.shape = x.shape
        ctx.save_for_backward(u if kept else w, *kept)
        if out.shape[2:] == x.shape[2:]:
            return out
        return out[:, :, : x.shape[2], : x.shape[3]].contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        u, *kept = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad
        u = u if kept else _weights(u)
        wide = max(u.shape[1:])
        dx = torch.empty(ctx.shape, dtype=g.dtype, memory_format=torch.channels_last) if need_x else None
        du = torch.empty_like(u) if need_w else None
        for i, dy in enumerate(_parts(g, wide)):
            dm = _transform(A2.t(), _tiles(dy, 4), u.shape[1])
            if du is not None:
                du.baddbmm_(dm.transpose(1, 2), kept[i], beta=float(i > 0))  # in place: product would copy
            if dx is not None:
                m = _products(dm, u.transpose(1, 2))
                dv = product(_seen(g).t().to(g), m.flatten(1).t())
                part = _parts(dx, wide)[i]
                part.copy_(_overlapped(dv, part))
        if du is None:
            return dx, None
        dw = product(G2.t().to(g), du.flatten(1).t())
        return dx, dw.view(3, 3, *du.shape[1:]).permute(2, 3, 0, 1)


def _products(x: Float[Tensor, "p m k"], w: Float[Tensor, "p n k"]) -> Float[Tensor, "p m n"]:
    """Return x wᵀ at each place, one by one only where wide ones are quicker by oneDNN."""
    if not WIDER or min(w.shape[1:]) < WIDE:
        return x @ w.transpose(1, 2)
    return torch.stack([product(*pair) for pair in zip(x, w, strict=True)])


def _one(x: Tensor) -> bool:
    """Return whether an image is one tile, and most of it."""
    return all(side in (3, 4) for side in x.shape[2:])


def _seen(x: Tensor) -> Tensor:
    """Return Bᵀ ⊗ Bᵀ; for images that are one tile that of their pixels: the margin is zero."""
    return INNER if _one(x) else B2


def _grid(x: Tensor) -> tuple[int, int]:
    return -(-x.shape[2] // 4), -(-x.shape[3] // 4)


def _parts(x: Tensor, wide: int) -> tuple[Tensor, ...]:
    rows, columns = _grid(x)
    return torch.split(x, max(1, TILES // (wide * rows * columns)))


def _tiles(x: Tensor, size: int) -> Tensor:
    """Return tiles (size², tiles · channels) of size×size pixels, 4 apart."""
    rows, columns = _grid(x)
    edge = (size - 4) // 2
    x = x.permute(0, 2, 3, 1)
    if size > 4 or x.shape[1:3] != (4 * rows, 4 * columns):  # padding by nothing is a copy, too
        x = F.pad(x, (0, 0, edge, 4 * columns + edge - x.shape[2], edge, 4 * rows + edge - x.shape[1]))
    return x.unfold(1, size, 4).unfold(2, size, 4).permute(4, 5, 0, 1, 2, 3).reshape(size * size, -1)


def _transform(matrix: Tensor, tiles: Tensor, channels: int) -> Tensor:
    return product(matrix.to(tiles), tiles.t()).view(36, -1, channels)


def _weights(w: Tensor) -> Tensor:
    """Return G w Gᵀ as (36, d, c)."""
    return product(G2.to(w), w.permute(2, 3, 0, 1).reshape(9, -1).t()).view(36, *w.shape[:2])


def _overlapped(tiles: Tensor, like: Tensor) -> Tensor:
    """Add 6×6 tiles up where they overlap and cut the margin off, if they have one: (b, c, h, w)."""
    (rows, columns), (images, channels, height, width) = _grid(like), like.shape
    if _one(like):
        return tiles.view(4, 4, images, channels)[:height, :width].permute(2, 3, 0, 1)
    tiles = tiles.view(6, 6, images, rows, columns, channels)
    total = tiles.new_zeros(images, 4 * rows + 2, 4 * columns + 2, channels)
    for i in range(6):
        for j in range(6):
            total[:, i : i + 4 * rows - 3 : 4, j : j + 4 * columns - 3 : 4] += tiles[i, j]
    return total[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2)
