"""Where paid questions are asked: through the journal, so that no answer is paid twice."""

import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dualstudent.errors import TargetError, UserError
from dualstudent.journal import ATTACK, Journal, Row, ranges
from dualstudent.oracle import Part, asking, checked
from dualstudent.spec import Service, Target, Telling


def _all(answer: Tensor) -> Tensor:
    return answer


@dataclass(frozen=True)
class Desk:
    """Asks a bare target for one purpose, and takes from the journal what it has answered before.

    `seen` turns the target's own answers, which the journal keeps, into what the asker may see.
    """

    journal: Journal
    target: Target
    purpose: str = ATTACK
    seen: Callable[[Tensor], Tensor] = _all

    def question(self, x: Float[Tensor, "b c h w"], first: int) -> "Question":
        """Return the question of images as the target will see them, at the positions from `first`.

        Raises UserError where the journal holds another image at one of them.
        """
        held = self.journal.held(self.purpose, first, len(x))
        if held:
            for at, (digest, row) in enumerate(zip(digests(x), _in_order(held, first, len(x)), strict=True)):
                if row is not None and row.digest != digest:
                    raise UserError(
                        f"image {first + at} ({self.purpose}) is not the one in {self.journal.path}:"
                        " the run is not the same (other versions, threads, device?); nothing more was asked"
                    )
        return Question(self, x, first, held)

    def resumed(self, spent: int) -> None:
        """Raise UserError unless the journal holds all answers up to a snapshot."""
        self.journal.whole(spent)


class Question:
    """A batch of images: `due` says for how many a charge is due; `parts` asks those not in the journal."""

    def __init__(self, desk: Desk, x: Tensor, first: int, held: dict[int, Row]) -> None:
        self.desk, self.x, self.first, self._held = desk, x, first, held
        self._open = np.array([at for at in range(len(x)) if first + at not in held], np.int64)
        self._sent, left = desk.journal.before(desk.purpose, first, len(x))
        self._left = int(left[self._open].sum())

    @property
    def due(self) -> int:
        """Images that will be asked, but for those that were charged before and never sent."""
        return len(self._open) - self._left

    def parts(self) -> Iterator[Part]:
        """Start asking what is missing; return (places, answers) of what is held, then of each request.

        Each is in the journal before it is returned; a service's are kept as they come, whether or not
        they are waited for. Raises TargetError on an answer that is none, which is not kept; UserError
        where the journal fails.
        """
        known = [(row.position - self.first, row.answer) for row in self._held.values()]
        parts = (
            [(torch.tensor([at for at, _ in known]), _stacked([row for _, row in known]))] if known else []
        )
        asked: Iterator[Part] = iter(())
        if len(self._open):
            asked = self._kept(self._begun())
            if isinstance(self.desk.target, Service):
                asked = self.desk.journal.ahead(asked)
        return ((at, self.desk.seen(rows.to(self.x.device))) for at, rows in itertools.chain(parts, asked))

    def _begun(self) -> Iterator[Part]:
        """Ask what is missing, and note what is sent where the service tells."""
        target, journal = self.desk.target, self.desk.journal
        whole = len(self._open) == len(self.x)
        x = self.x if whole else self.x[torch.from_numpy(self._open).to(self.x.device)]
        tells = isinstance(target, Telling)
        number = journal.begin(self.desk.purpose, self.first, len(self.x), tells=tells)
        if not isinstance(target, Telling):
            return asking(target, x)

        def sending(places: Tensor) -> None:
            journal.sending(number, ranges((self.first + self._open[places.numpy()]).tolist()))

        return target.telling(x, sending)

    def _kept(self, requests: Iterator[Part]) -> Generator[Part]:
        """Verify and keep each request's answers as they come, and yield them with their places."""
        left = set(self._open.tolist())
        with _closed(requests):  # where an answer is none, or cannot be kept, nothing more is sent
            for positions, answers in requests:
                places = positions.cpu().numpy()
                within = ((places >= 0) & (places < len(self._open))).all()
                at = self._open[places] if within else places[:0]
                if len(at) != len(places) or len(set(at.tolist()) & left) != len(at):
                    raise TargetError("the target answered images that it was not asked, or one twice")
                with torch.inference_mode():  # which another thread is not in by itself
                    answers = checked(answers, len(at), self.desk.target.spec).cpu()
                left -= set(at.tolist())
                self.desk.journal.record(
                    self.desk.purpose,
                    (self.first + at).tolist(),
                    digests(self.x[torch.from_numpy(at).to(self.x.device)]),
                    answers.numpy(),
                    (1 + self._sent[at]).tolist(),
                    done=None if left else (self.first, len(self.x)),
                )
                yield torch.from_numpy(at), answers
        if left:
            raise TargetError(f"the target left {len(left)} of {len(self._open)} images without an answer")


@contextmanager
def _closed(requests: Iterator[Part]) -> Iterator[None]:
    try:
        yield
    finally:
        if isinstance(requests, Generator):
            requests.close()


def digests(x: Float[Tensor, "b c h w"]) -> list[bytes]:
    """Return 16 bytes of SHA-256 of each image's float32 values: equal for equal images only."""
    raw = x.detach().to("cpu", torch.float32).contiguous().numpy()
    return [hashlib.sha256(image.tobytes()).digest()[:16] for image in raw]


def _in_order(held: dict[int, Row], first: int, images: int) -> list[Row | None]:
    return [held.get(first + at) for at in range(images)]


def _stacked(rows: Sequence["np.ndarray[tuple[int], np.dtype[np.float32]]"]) -> Tensor:
    """Return rows as one tensor: those of label-only targets of unknown width may differ in it."""
    wide = max(len(row) for row in rows)
    table = np.zeros((len(rows), wide), np.result_type(*{row.dtype for row in rows}))
    for to, row in zip(table, rows, strict=True):
        to[: len(row)] = row
    return torch.from_numpy(table)
