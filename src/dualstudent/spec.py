"""What is known of a target before the first query, and what a target is."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from functools import cache
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dualstudent.errors import UserError

Labels = Literal["soft", "hard"]
SLACK = 1e-4  # of the range, by which rounding may have put an input out of the bounds
VALUES = 1 << 26  # of an image, at most: a quarter of a GiB
LARGEST = 10**9  # values of an image: a file that says more is damaged
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}


class Access(IntEnum):
    """What a target reveals of each image, from least to most."""

    LABEL = 0  # the top class only, as a one-hot row
    TOPK = 1  # the largest probabilities, zeros elsewhere
    PROBS = 2  # all class probabilities


@dataclass(frozen=True)
class Spec:
    """All that is known of a target: image shape (c, h, w), class count, input range, access.

    `classes` is None where the attacker does not know the number. `levels` is 256 where a service
    takes 8-bit images; `half` says that it takes half-precision numbers. `mean` and `std` (one value
    a channel) say that the inputs are pixels normalised by them; without, a pixel in [0, 1] is
    stretched to `bounds`. Raises UserError.
    """

    shape: tuple[int, int, int]
    classes: int | None
    bounds: tuple[float, float] = (0.0, 1.0)
    access: Access = Access.PROBS
    levels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    half: bool = False

    def __post_init__(self) -> None:
        for name in ("shape", "bounds", "mean", "std"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise UserError(f"image shape {self.shape}: give channels, height and width, all positive")
        if math.prod(self.shape) > VALUES:
            raise UserError(f"images of {math.prod(self.shape):,} values, {self.shape}: at most {VALUES:,}")
        if self.classes is not None and self.classes < 2:
            raise UserError(f"{self.classes} classes: a classifier has two or more")
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"input bounds {self.bounds}: give two finite numbers, the lower first")
        if self.levels is not None and self.levels < 2:
            raise UserError(f"{self.levels} input levels: two or more are needed")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.shape[0]:
                raise UserError(f"{name} has {len(values)} values for {self.shape[0]} channels")
        if (self.mean is None) != (self.std is None):
            raise UserError("mean and std belong together: give both or none")

    def encode(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Turn pixels in [0, 1] into the target's inputs (normalised ones may leave `bounds`)."""
        if self.mean is not None and self.std is not None:
            mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
            std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
            return (pixels - mean) / std
        low, high = self.bounds
        return pixels if (low, high) == (0.0, 1.0) else low + (high - low) * pixels

    def decode(self, inputs: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Turn inputs inside `bounds` into pixels in [0, 1], to look at."""
        low, high = self.bounds
        return ((inputs - low) / (high - low)).clamp(0, 1)

    def quantise(self, inputs: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Round inputs to the `levels` and to the precision that the target can take; else unchanged."""
        low, high = self.bounds
        if self.levels is not None:
            step = (high - low) / (self.levels - 1)
            inputs = low + ((inputs - low) / step).round() * step
        if not self.half:
            return inputs
        rounded, slack = inputs.half().to(inputs.dtype), SLACK * (high - low)
        inside = (inputs >= low - slack) & (inputs <= high + slack)
        return torch.where(inside, rounded.clamp(*_within(low, high)), rounded)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        values = {**asdict(self), "access": self.access.name}
        if not self.half:  # as runs of earlier versions have it
            del values["half"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Spec":
        """Read what `to_json` wrote. Raises UserError on anything else."""
        try:
            known = dict(values)
            known["access"] = Access[known["access"]]
            for name in ("shape", "bounds", "mean", "std"):
                if known.get(name) is not None:
                    known[name] = tuple(known[name])
            spec = cls(**known)
            counts = [*spec.shape, *(n for n in (spec.classes, spec.levels) if n is not None)]
            if not all(type(n) is int for n in counts) or max(math.prod(spec.shape), *counts) > LARGEST:
                raise ValueError(f"shape {spec.shape}, {spec.classes} classes, {spec.levels} levels")
            if not isinstance(spec.half, bool):
                raise TypeError(f"half is {str(spec.half)[:40]!r}")
            for number in (*spec.bounds, *(spec.mean or ()), *(spec.std or ())):
                math.isfinite(number)
            return spec
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"not a spec: {error}") from error


@cache
def _within(low: float, high: float) -> tuple[float, float]:
    """Return the outermost half-precision numbers in [low, high]."""
    least, most = (torch.tensor(end, dtype=torch.float64) for end in (low, high))
    first, last = (end.clamp(-65504, 65504).half() for end in (least, most))
    up, down = torch.tensor(math.inf).half(), torch.tensor(-math.inf).half()
    first = torch.nextafter(first, up) if first < least else first
    last = torch.nextafter(last, down) if last > most else last
    return float(first), float(last)


@runtime_checkable
class Target(Protocol):
    """A classifier that can be asked: images in `spec.bounds` in, rows on the simplex out."""

    @property
    def spec(self) -> Spec:
        """What is known of it before the first query."""

    def __call__(self, x: Float[Tensor, "b c h w"], /) -> Float[Tensor, "b k"]:
        """Return class probabilities (or one-hot labels), a row an image."""


@dataclass
class Traffic:
    """Counters of what went over the wire to a service; in one process they only grow."""

    requests: int = 0  # sent, those asked again included
    retried: int = 0  # requests that were asked again
    failed_images: int = 0  # images in requests that failed and were asked again
    broken_off: int = 0  # of those images, the ones that may have been answered, on a way that broke off
    sent: int = 0  # bytes
    received: int = 0  # bytes
    waiting: float = 0.0  # seconds that the run waited for answers
    statuses: dict[str, int] = field(default_factory=dict)  # "200": 12, "503": 1, "timeout": 2, "reset": 1


@runtime_checkable
class Service(Target, Protocol):
    """A target where every answer is paid for: its answers come a request at a time.

    `__call__` assembles what `requests` yields, in order.
    """

    traffic: Traffic

    def requests(
        self, x: Float[Tensor, "b c h w"]
    ) -> Iterator[tuple[Int64[Tensor, "n"], Float[Tensor, "n k"]]]:
        """Yield (positions in the batch, answers on the simplex) of each request as soon as it is answered,
        in whatever order.
        """


@runtime_checkable
class Telling(Service, Protocol):
    """A service that tells what it is about to send: after a crash the bill knows what never was."""

    def telling(
        self, x: Float[Tensor, "b c h w"], sending: Callable[[Int64[Tensor, "n"]], None]
    ) -> Iterator[tuple[Int64[Tensor, "n"], Float[Tensor, "n k"]]]:
        """Do as `requests`, and call `sending(positions)` before each request is sent, in any thread."""


def parse_count(text: str) -> int:
    """Return a number of images written as 50000, 50_000, 50k or 2M. Raises UserError."""
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)([km]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"'{text}' is no number of queries: write 50000, 50k or 2M")
    value = float(match[1].replace("_", "")) * _UNITS[match[2].lower()]
    if value != int(value):
        raise UserError(f"'{text}' is no whole number of queries")
    if value < 2:
        raise UserError(f"{text} queries: at least 2 are needed")
    return int(value)
