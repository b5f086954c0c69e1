"""A service in the tests' own process: answers a request at a time, and can be told to fail."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear


class Gone(BaseException):
    """The process was killed: nothing that the program does for errors happens."""


@dataclass
class Paid:
    """A service of a fixed linear classifier: `size` images a request, answered in a given order.

    `before(n)` is called before request n is answered, `after(n)` once it has been: both may raise.
    `seen` counts the images that the service has answered, `answered` the times that each one was.
    """

    inner: Linear
    size: int = 4
    turned: bool = False  # whether the last request is answered first
    before: Callable[[int], None] = lambda n: None
    after: Callable[[int], None] = lambda n: None
    seen: int = 0
    answered: dict[bytes, int] = field(default_factory=dict)
    traffic: ds.Traffic = field(default_factory=ds.Traffic)

    @property
    def spec(self) -> ds.Spec:
        return self.inner.spec

    def requests(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return self.telling(x, lambda places: None)

    def telling(self, x: Tensor, sending: Callable[[Tensor], None]) -> Iterator[tuple[Tensor, Tensor]]:
        parts = list(torch.split(torch.arange(len(x)), self.size))
        for at in reversed(parts) if self.turned else parts:
            self.traffic.requests += 1
            sending(at)
            self.before(self.traffic.requests)
            self.seen += len(at)
            for image in x[at]:
                key = image.numpy().tobytes()
                self.answered[key] = self.answered.get(key, 0) + 1
            answers = self.inner(x[at])
            self.traffic.received += answers.nbytes
            self.traffic.statuses["200"] = self.traffic.statuses.get("200", 0) + 1
            self.after(self.traffic.requests)
            yield at, answers

    def __call__(self, x: Tensor, /) -> Tensor:
        found = list(self.requests(x))
        order = torch.cat([at for at, _ in found]).argsort()
        return torch.cat([answers for _, answers in found])[order]


def service(size: int = 4, **more: object) -> Paid:
    """Return a service of 8×8 images and four classes."""
    access = more.pop("access", ds.Access.PROBS)
    spec = ds.Spec((1, 8, 8), 4, access=access)  # type: ignore[arg-type]
    return Paid(Linear(spec), size, **more)  # type: ignore[arg-type]
