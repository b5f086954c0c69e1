"""DCGAN (Radford, Metz, Chintala 2016) for images of 8 to 64 pixels a side."""

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent.errors import UserError
from dualstudent.numerics import full


def doublings(shape: tuple[int, int, int]) -> int:
    """Return how often a grid of about 4×4 is doubled. Raises UserError on sizes outside 8 to 64."""
    if not all(8 <= side <= 64 for side in shape[1:]):
        raise UserError(f"the DCGAN makes images of 8 to 64 pixels a side, not {shape[1]}×{shape[2]}")
    return math.ceil(math.log2(max(shape[1:]) / 4))


class DCGenerator(nn.Module):
    """Noise (b, d) to images (b, c, h, w) in `bounds`: linear, then transposed 4×4 convolutions, tanh."""

    def __init__(
        self, noise: int, shape: tuple[int, int, int], bounds: tuple[float, float], *, width: int = 64
    ) -> None:
        super().__init__()
        self.shape, self.bounds, times = shape, bounds, doublings(shape)
        widths = [width * 2**i for i in reversed(range(times))]
        self.grid = (widths[0], -(-shape[1] // 2**times), -(-shape[2] // 2**times))
        self.linear = nn.Linear(noise, math.prod(self.grid))
        self.bn0 = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs)]
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)
        self.last = nn.ConvTranspose2d(widths[-1], shape[0], 4, 2, 1)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        x = self.linear(z).view(-1, *self.grid).contiguous(memory_format=torch.channels_last)
        x = self.last(self.layers(F.relu(self.bn0(x))))[:, :, : self.shape[1], : self.shape[2]]
        low, high = self.bounds
        return low + (high - low) * (full(x).tanh() + 1) / 2


class Critic(nn.Module):
    """Images (b, c, h, w) to logits (b,) of being real: strided 4×4 convolutions, LeakyReLU."""

    def __init__(self, shape: tuple[int, int, int], *, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, h, w = shape
        for i in range(doublings(shape)):
            halved = h > 4, w > 4  # the shorter side is small before the longer one is
            kernel, stride = (tuple(a if half else b for half in halved) for a, b in ((4, 3), (2, 1)))
            layers.append(nn.Conv2d(inputs, width * 2**i, kernel, stride, 1, bias=i == 0))  # type: ignore[arg-type]
            layers += [nn.BatchNorm2d(width * 2**i)] if i else []
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            inputs, h, w = width * 2**i, h // stride[0], w // stride[1]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs * h * w, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        return full(self.head(self.layers(x).flatten(1))).squeeze(1)
