"""What all services share: requests of a few images, answers verified before anyone sees them."""

import hashlib
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dualstudent.errors import TargetError, UserError
from dualstudent.oracle import checked, together
from dualstudent.spec import Spec, Traffic
from dualstudent.targets.module import Output, simplex
from dualstudent.targets.strict import plain
from dualstudent.targets.transport import Reply, Transport
from dualstudent.targets.wire import SecretNames

LONG = 100  # characters of a version that is kept as it is, not as its digest
Images = npt.NDArray[np.float32]


class HttpService(ABC):
    """A service whose answers are paid for; requests are sent at once and may be answered in any order."""

    def __init__(self, transport: Transport, spec: Spec, output: Output, *, path: str, batch: int) -> None:
        self.transport, self.spec, self.output, self.path, self.batch = transport, spec, output, path, batch
        self._numbers = itertools.count(1)
        self.version: str | None = None  # of the model, as far as it is known
        self._guard = threading.Lock()
        self._note: Callable[[str], None] = _to_nobody

    @property
    def traffic(self) -> Traffic:
        """What has gone over the wire so far."""
        return self.transport.traffic

    @property
    def lanes(self) -> int:
        """Requests in flight."""
        return self.transport.options.concurrency

    @property
    def secrets(self) -> SecretNames:
        """Where what is sent along is read from: names, no values."""
        return self.transport.options

    @property
    def rate(self) -> float | None:
        """Images a second, at most."""
        return self.transport.options.rate

    def heed(self, wish: Callable[[], bool]) -> None:
        """Ask now and then, while answers are awaited, whether the run is to stop; then raise Stopped."""
        self.transport.wish = wish

    def recall(self, version: str | None, note: Callable[[str], None]) -> None:
        """Begin a session of a run that `version` has answered; if none is known, `note` gets the first.

        Raises TargetError where another version answers now.
        """
        self._note = note
        if version is None and self.version is not None:
            note(self.version)
        if version is not None and self.version is not None and version != self.version:
            raise _changed(self.version, version)
        self.version = version or self.version

    def same_version(self, said: object) -> None:
        """Raise TargetError unless an answer is of the version that the run began with."""
        text = str(said)
        text = text if len(text) <= LONG and text.isprintable() else hashlib.sha256(text.encode()).hexdigest()
        text = self.transport.secrets.hide(text)
        with self._guard:
            if self.version is None:
                self._note(text)
                self.version = text
            if text != self.version:
                raise _changed(text, self.version)

    def altered(self) -> str | None:
        """Ask what the service says of itself; return in words what is other than at first, None for nothing.

        Raises TargetError.
        """
        return None

    @abstractmethod
    def encode(self, images: Images, number: int) -> tuple[bytes, list[tuple[str, str]]]:
        """Return body and headers of the request of that number."""

    @abstractmethod
    def decode(self, reply: Reply, images: int, number: int) -> Tensor:
        """Return what a reply says of so many images, before softmax or one-hot. Raises TargetError."""

    def requests(
        self, x: Float[Tensor, "b c h w"]
    ) -> Iterator[tuple[Int64[Tensor, "n"], Float[Tensor, "n k"]]]:
        """Send all requests now; yield (positions, answers) of each as soon as it is answered.

        Raises TargetError, Stopped.
        """
        return self.telling(x, lambda places: None)

    def telling(
        self, x: Float[Tensor, "b c h w"], sending: Callable[[Int64[Tensor, "n"]], None]
    ) -> Iterator[tuple[Int64[Tensor, "n"], Float[Tensor, "n k"]]]:
        """Do as `requests`; each request tells its places, in its own thread, before it is sent.

        The images are dealt out evenly: no request is left with a single one, whose answer a network
        may round otherwise. Raises TargetError, Stopped.
        """
        images = x.detach().to("cpu", torch.float32).numpy()
        places = np.array_split(np.arange(len(images)), -(-len(images) // self.batch))

        def work(part: Any, gone: threading.Event) -> Tensor:
            told = partial(sending, torch.from_numpy(part))
            return self._exchange(images[part[0] : part[-1] + 1], gone, told)

        works = [partial(work, part) for part in places]
        answers = self.transport.each(works)
        return ((torch.from_numpy(places[i]), answer.to(x.device)) for i, answer in answers)

    def __call__(self, x: Float[Tensor, "b c h w"], /) -> Float[Tensor, "b k"]:
        """Return rows on the simplex, in the order of the images. Raises TargetError, Stopped."""
        return together(self.requests(x), x, self.spec)

    def _exchange(self, images: Images, gone: threading.Event, sending: Callable[[], None]) -> Tensor:
        number = next(self._numbers)
        body, headers = self.encode(images, number)
        reply = self.transport.ask(
            self.path,
            content=body,
            headers=headers,
            images=len(images),
            limit=self._limit(len(images)),
            gone=gone,
            sending=sending,
        )
        try:
            return checked(
                simplex(self.decode(reply, len(images), number), self.output, self.spec.classes),
                len(images),
                self.spec,
            )
        except TargetError as error:
            raise self.transport.about(error, reply.body) from None
        except UserError:
            raise
        except Exception as error:  # whatever a stranger thinks of next, it is no fault of this program
            said = TargetError(f"the answer cannot be read ({type(error).__name__}: {plain(str(error), 80)})")
            raise self.transport.about(said, reply.body) from error

    def _limit(self, images: int) -> int:
        return self.transport.options.answer_limit or (1 << 20) + (images << 16)


def _to_nobody(version: str) -> None:
    """Do without a run that keeps the version."""


def _changed(now: str, before: str) -> TargetError:
    return TargetError(
        f"the model changed: version {plain(now, 40)} answers, the run began with {plain(before, 40)};"
        " put that back, or begin a new run"
    )


def to_bytes(images: Images, spec: Spec) -> npt.NDArray[np.uint8]:
    """Return inputs in the bounds as 0 … 255."""
    low, high = spec.bounds
    scaled: npt.NDArray[np.float32] = np.rint((images - low) * (255 / (high - low)))
    return scaled.clip(0, 255).astype(np.uint8)
