"""Labelled images on one device."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from dualstudent.data.facts import DataSet
from dualstudent.data.raw import Raw, broken
from dualstudent.errors import UserError


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, resident on one device as uint8; two are equal only if they are the same."""

    name: str
    split: str
    images: UInt8[Tensor, "n c h w"] = field(repr=False)
    labels: Int64[Tensor, "n"] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape (c, h, w) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def to(self, device: torch.device | str) -> "Images":
        """Return the same images and labels on a device."""
        return Images(self.name, self.split, self.images.to(device), self.labels.to(device), self.classes)

    def pixels(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "b c h w"]:
        """Return images start..stop (of a slice) as float32 in [0, 1]."""
        return self.images[start:stop].to(torch.float32).div_(255)

    def __getitem__(self, index: slice | Tensor) -> "Images":
        """Return the images of a slice, of a tensor of indices (m,) or of a mask (n,)."""
        return Images(self.name, self.split, self.images[index], self.labels[index], self.classes)

    def digest(self) -> str:
        """Return the SHA-256, in hex, of the bytes of the images and then of the labels."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256(self.images.cpu().contiguous().numpy().data)
        total.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return total.hexdigest()


def checked(raw: Raw, name: str, split: str, facts: DataSet | None) -> Images:
    """Turn what a reader found into Images.

    Raises UserError on labels that do not fit, on no images at all, and on another shape or
    number of classes than `facts` say.
    """
    where, images, labels, classes = raw
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise broken(where, f"labels of type {labels.dtype} and shape {labels.shape} are no list of integers")
    if len(labels) != len(images):
        raise broken(where, f"{len(images)} images but {len(labels)} labels")
    if not images.size:
        raise UserError(f"{where} holds no images")
    low, high = int(labels.min()), int(labels.max())
    if classes is None:
        classes = facts.classes if facts else tuple(str(label) for label in range(high + 1))
    if low < 0 or high >= len(classes):
        raise broken(where, f"labels {low} to {high} for {len(classes)} classes")
    if facts and (images.shape[1:] != facts.shape or len(classes) != len(facts.classes)):
        raise UserError(
            f"{where} holds {len(classes)} classes of images of shape {images.shape[1:]}, but {name} has "
            f"{len(facts.classes)} of shape {facts.shape}: is it another data set?"
        )
    return Images(name, split, _tensor(images, np.uint8), _tensor(labels, np.int64), classes)


def _tensor(array: np.ndarray, dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.require(array, dtype, ["C", "W", "O"]))
