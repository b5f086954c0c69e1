"""Knockoff Nets, random strategy (Orekondy, Schiele, Fritz; CVPR 2019; arXiv 1812.02766). Not data-free."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent import parallel
from dualstudent.data import DATA_SETS, Images, load_data
from dualstudent.errors import UserError
from dualstudent.methods.game import Learners
from dualstudent.methods.procedural import Pool
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
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "proxy", settled(self.proxy))
        object.__setattr__(self, "proxy_dir", settled(self.proxy_dir))

    def init(self, spec: Spec) -> "Holder":
        """Return fresh students, an empty memory and a shuffled deck. Raises UserError without images."""
        pool = self.outside(spec)
        return Holder(**vars(super().init(spec)), deck=Deck(len(pool)))

    def outside(self, spec: Spec) -> Images:
        """Return the proxy images, in the target's shape."""
        return proxy_images(self.proxy, self.proxy_split, self.proxy_dir, spec.shape)

    def pixels(self, state: Learners, first: int, images: int, spec: Spec, device: torch.device) -> Tensor:
        assert isinstance(state, Holder)
        pool, order = self.outside(spec), state.deck.order.cpu()
        cards = torch.arange(first, first + images)[parallel.rank() :: parallel.world()]
        x = pool[order[cards % len(order)]].pixels()
        again = (cards >= len(order)).view(-1, 1, 1, 1)
        return torch.where(again, _shifted(x), x).to(device)


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
    """Return images rolled by up to two pixels each way, and not by none."""
    places = [(d, r) for d in range(-2, 3) for r in range(-2, 3) if d or r]
    chosen = torch.randint(len(places), (len(x),)).tolist()
    return torch.stack([one.roll(places[i], (1, 2)) for one, i in zip(x, chosen, strict=True)])


def settled(place: str | None) -> str | None:
    """Return a folder by its whole path, for a run that is resumed from elsewhere; a name as it is."""
    if place is None or place in DATA_SETS or not Path(place).is_dir():
        return place
    return str(Path(place).absolute())


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
