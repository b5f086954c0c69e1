"""Generators: noise to images of any shape, inside the bounds of the target's inputs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent.errors import UserError
from dualstudent.networks.doubled import doubled, narrow
from dualstudent.networks.winograd import usable
from dualstudent.numerics import full


class Generator(nn.Module):
    """DFME's generator (facts in docs/methods): linear, twice ×2 nearest with 3×3 convolution, tanh.

    Noise (b, noise) to images (b, c, h, w) in `bounds`, for h, w from 8 to 64: the grid that is
    twice doubled is ⌈h/4⌉ × ⌈w/4⌉, what is over is cut off. `learn_range` gives the last BatchNorm
    a learnt scale and offset (the paper's has none). Raises UserError on other sizes.
    """

    def __init__(
        self,
        noise: int,
        shape: tuple[int, int, int],
        bounds: tuple[float, float],
        *,
        width: int = 64,
        learn_range: bool = False,
    ) -> None:
        super().__init__()
        c, h, w = shape
        if not (8 <= h <= 64 and 8 <= w <= 64):
            raise UserError(f"the generator makes images of 8 to 64 pixels a side, not {h}×{w}")
        self.shape, self.bounds = shape, bounds
        self.grid = (2 * width, -(-h // 4), -(-w // 4))
        self.linear = nn.Linear(noise, self.grid[0] * self.grid[1] * self.grid[2])
        self.bn0 = nn.BatchNorm2d(2 * width)
        self.conv1 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(c, affine=learn_range)

    def preactivation(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return the images before tanh: unbounded, never to be shown to a student or a target."""
        x = self.linear(z).view(-1, *self.grid).contiguous(memory_format=torch.channels_last)
        x = self.bn0(x)
        x = F.leaky_relu(self.bn1(doubled(x, self.conv1.weight)), 0.2, inplace=True)
        x = F.leaky_relu(self.bn2(doubled(x, self.conv2.weight)), 0.2, inplace=True)
        x = narrow(x, self.conv3.weight) if self.shape[0] == 1 and usable(x) else self.conv3(x)
        x = x[:, :, : self.shape[1], : self.shape[2]]
        return self.bn3(x)  # type: ignore[no-any-return]

    def activate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return images in `bounds` from preactivations."""
        low, high = self.bounds
        return low + (high - low) * (full(x).tanh() + 1) / 2

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return self.activate(self.preactivation(z))
