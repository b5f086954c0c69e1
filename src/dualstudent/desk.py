"""Where paid questions are asked: through the journal, so that no answer is paid twice."""

import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dualstudent.errors import TargetError, UserError
from dualstudent.journal import ATTACK, Journal, Row
from dualstudent.oracle import Part, asking, checked
from dualstudent.spec import Service, Target


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
    """A batch of images: `missing` says how many are not in the journal yet; `parts` asks them."""

    def __init__(self, desk: Desk, x: Tensor, first: int, held: dict[int, Row]) -> None:
        self.desk, self.x, self.first, self._held = desk, x, first, held
        self._open = np.array([at for at in range(len(x)) if first + at not in held], np.int64)
        self._number, self._attempts = 0, np.ones(len(x), np.int64)
        if self.missing:  # on disk before the charge: what is not asked in the end is withdrawn
            self._number, self._attempts = desk.journal.begin(desk.purpose, first, len(x))

    @property
    def missing(self) -> int:
        """Images that will be asked."""
        return len(self._open)

    def withdraw(self) -> None:
        """Say that it will not be asked: the charge was refused."""
        if self._number:
            self.desk.journal.withdraw(self._number)

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
        if self.missing:
            whole = self.missing == len(self.x)
            x = self.x if whole else self.x[torch.from_numpy(self._open).to(self.x.device)]
            asked = self._kept(asking(self.desk.target, x))
            if isinstance(self.desk.target, Service):
                asked = self.desk.journal.ahead(asked)
        return ((at, self.desk.seen(rows.to(self.x.device))) for at, rows in itertools.chain(parts, asked))

    def _kept(self, requests: Iterator[Part]) -> Generator[Part]:
        """Verify and keep each request's answers as they come, and yield them with their places."""
        left = set(self._open.tolist())
        for positions, answers in requests:
            places = positions.cpu().numpy()
            within = ((places >= 0) & (places < self.missing)).all()
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
                self._attempts[at].tolist(),
                done=None if left else (self.first, len(self.x)),
            )
            yield torch.from_numpy(at), answers
        if left:
            raise TargetError(f"the target left {len(left)} of {self.missing} images without an answer")


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
