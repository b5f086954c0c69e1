"""Knockoff Nets, random strategy (Orekondy, Schiele, Fritz; CVPR 2019; arXiv 1812.02766). Not data-free."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent import parallel
from dualstudent.data import Images, load_data
from dualstudent.errors import UserError
from dualstudent.methods.procedural import Learners, Pool
from dualstudent.spec import Spec


@dataclass(frozen=True)
class Knockoff(Pool):
    """Other people's images, each asked once, in random order; asked again, shifted, when they run out.

    With the target's own training images: what bounds every method from above.
    """

    proxy: str = "digits"  # data set, or folder of class folders, whose images are asked; labels are not used
    proxy_split: str = "train"  # split of it
    proxy_dir: str | None = None  # folder of data sets; default: DUALSTUDENT_DATA

    name: ClassVar[str] = "knockoff"
    data_free: ClassVar[bool] = False

    def init(self, spec: Spec) -> "Holder":
        """Return fresh students, an empty memory and a shuffled deck. Raises UserError without images."""
        pool = self.outside(spec)
        return Holder(**vars(super().init(spec)), deck=Deck(len(pool)))

    def outside(self, spec: Spec) -> Images:
        """Return the proxy images, in the target's shape."""
        return proxy_images(self.proxy, self.proxy_split, self.proxy_dir, spec.shape)

    def pixels(self, state: Learners, images: int, spec: Spec, device: torch.device) -> Tensor:
        assert isinstance(state, Holder)
        pool, turn = self.outside(spec), state.memory.added // len(state.deck.order)
        cards = (state.memory.added + torch.arange(images)) % len(state.deck.order)
        mine = cards[parallel.rank() :: parallel.world()]
        x = pool[state.deck.order[mine.to(device)].cpu()].pixels().to(device)
        return x if turn == 0 else _shifted(x)


class Deck(nn.Module):
    """The order in which a pool of images is asked, shuffled when the run begins."""

    order: Tensor

    def __init__(self, images: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(images))


@dataclass
class Holder(Learners):
    """The learners, and the order in which images are asked."""

    deck: Deck


def _shifted(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return images rolled by up to two pixels each way."""
    down, right = torch.randint(-2, 3, (2, len(x))).tolist()
    return torch.stack([one.roll((d, r), (1, 2)) for one, d, r in zip(x, down, right, strict=True)])


@functools.lru_cache(maxsize=4)
def proxy_images(name: str, split: str, folder: str | None, shape: tuple[int, int, int]) -> Images:
    """Return a data set's images in a shape: resized, colours made or taken away."""
    data = load_data(name, split, folder=folder)
    if data.shape == shape:
        return data
    if shape[0] not in (1, data.shape[0]) and data.shape[0] != 1:
        raise UserError(f"--proxy {name} has {data.shape[0]} channels, the target takes {shape[0]}")
    parts = []
    for start in range(0, len(data), 1000):
        x = data.pixels(start, start + 1000)
        x = x.mean(1, keepdim=True) if shape[0] == 1 else x.expand(-1, shape[0], -1, -1)
        x = F.interpolate(x, size=shape[1:], mode="bilinear", antialias=True, align_corners=False)
        parts.append((x * 255).round().clamp(0, 255).to(torch.uint8))
    return Images(data.name, data.split, torch.cat(parts), data.labels, data.classes)
