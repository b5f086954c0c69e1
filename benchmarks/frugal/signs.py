"""A task made up to choose frugal's recipe for colours and many classes: digits of MNIST on signs.

Forty classes, four kinds of sign by ten digits, on any ground, in any light: signs as roads have them, though
no image of GTSRB was looked at for them, and none is tuned on. Writes train.npz and test.npz, a data set.

    python benchmarks/frugal/signs.py FOLDER
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

import dualstudent as ds

SIDE, TRAIN, TEST = 32, 40_000, 4_000
SHAPES = ("disc", "triangle", "disc", "square")
RED, BLUE, WHITE, YELLOW, BLACK = (
    (0.75, 0.1, 0.12),
    (0.1, 0.25, 0.7),
    (0.92, 0.92, 0.9),
    (0.9, 0.75, 0.1),
    (0.08, 0.08, 0.08),
)
PAINTS = ((RED, WHITE, BLACK), (RED, WHITE, BLACK), (BLUE, BLUE, WHITE), (WHITE, YELLOW, BLACK))


@dataclass(frozen=True)
class Places:
    """Where signs lie: pixel coordinates from their centres in units of their size, (b, 1, h, w)."""

    x: Tensor
    y: Tensor

    def depth(self, shape: str, turn: Tensor) -> Tensor:
        """Return how deep a pixel is in a shape; below zero outside."""
        radius = (self.x**2 + self.y**2).sqrt()
        if shape == "disc":
            return 1 - radius
        sides, start, scale = (3, math.pi / 6, 1.1) if shape == "triangle" else (4, math.pi / 4, 1.0)
        sector = 2 * math.pi / sides
        angle = (torch.atan2(self.y, self.x) + start + turn) % sector - sector / 2
        return (0.75 - radius * angle.cos()) * scale - (0.15 if shape == "triangle" else 0.0)


def uniform(images: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(images, 1, 1, 1)


def ground(images: int) -> Tensor:
    """Return coloured noise whose spectrum falls with frequency, as that of photographs does."""
    at = torch.fft.fftfreq(SIDE)
    falling = (at[:, None] ** 2 + at**2).sqrt().clamp_min(1 / SIDE) ** -1.2
    wave = torch.fft.ifft2(torch.fft.fft2(torch.randn(images, 3, SIDE, SIDE)) * falling).real
    wave = (wave - wave.mean((2, 3), keepdim=True)) / wave.std((1, 2, 3), keepdim=True)
    wave = 0.7 * wave.mean(1, keepdim=True) + 0.5 * wave
    return (0.45 + 0.25 * wave + 0.1 * torch.randn(images, 1, 1, 1)).clamp(0, 1)


def painted(kind: Tensor, part: int) -> Tensor:
    """Return the colour of a part of each sign, a little off: border, filling or digit."""
    colours = torch.tensor([paints[part] for paints in PAINTS])[kind].view(-1, 3, 1, 1)
    return colours + 0.06 * torch.randn(len(kind), 3, 1, 1)


def signs(digits: Tensor, kind: Tensor) -> Tensor:
    """Return signs (b, 3, 32, 32) in [0, 1] of some kinds with digits (b, 1, 28, 28) on them."""
    n = len(kind)
    left, top, size = uniform(n, -0.12, 0.12), uniform(n, -0.12, 0.12), uniform(n, 0.62, 0.85)
    axis = torch.linspace(-1, 1, SIDE)
    places = Places((axis.view(1, 1, 1, -1) - left) / size, (axis.view(1, 1, -1, 1) - top) / size)
    turn = uniform(n, -0.1, 0.1)
    depths = torch.stack([places.depth(shape, turn).expand(n, 1, SIDE, SIDE) for shape in SHAPES])
    depth = depths[kind, torch.arange(n)]
    x = ground(n)
    for inside, part in ((0.0, 0), (0.2, 1)):
        x = x + torch.sigmoid(24 * (depth - inside)) * (painted(kind, part) - x)
    lower = 0.1 * (kind == 1).float().view(-1, 1, 1, 1)  # in a triangle
    scale = uniform(n, 0.42, 0.55) * size
    zoom = torch.zeros(n, 2, 3)
    zoom[:, 0, 0] = zoom[:, 1, 1] = 1 / scale.flatten()
    zoom[:, 0, 2], zoom[:, 1, 2] = -(left / scale).flatten(), -((top + lower) / scale).flatten()
    grid = F.affine_grid(zoom, [n, 1, SIDE, SIDE], align_corners=False)
    x = x + F.grid_sample(digits, grid, align_corners=False) * (painted(kind, 2) - x)
    x = x * uniform(n, 0.25, 1.15) + uniform(n, -0.05, 0.2)
    x = x + (F.avg_pool2d(F.pad(x, (1,) * 4, mode="replicate"), 3, 1) - x) * uniform(n, 0, 0.9)
    return (x + 0.02 * torch.randn_like(x)).clamp(0, 1)


def main(folder: tyro.conf.Positional[Path]) -> None:
    """Write the data set into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for split, images in (("train", TRAIN), ("test", TEST)):
        digits = ds.load_data("mnist", split)
        part = digits[torch.randint(len(digits), (images,))]
        kind = torch.randint(len(PAINTS), (images,))
        x = torch.cat(
            [signs(*pair) for pair in zip(part.pixels().split(2000), kind.split(2000), strict=True)]
        )
        pixels = (255 * x).round().byte().permute(0, 2, 3, 1).numpy()
        np.savez(folder / f"{split}.npz", images=pixels, labels=(10 * kind + part.labels).numpy())


if __name__ == "__main__":
    tyro.cli(main)
