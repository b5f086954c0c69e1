"""Who pays: images charged before they are shown, and a record of what was shown."""

import os
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dualstudent import parallel
from dualstudent.errors import Overdraft, UserError


class Account:
    """Images shown to a target for one purpose ("attack", "audit"), under an optional limit.

    `spent` counts the images in the history of the present state; `asked` counts every image ever
    charged, steps replayed after a crash included. With a file, `asked` is on disk before anything
    is asked. Without `writes` the file is only read, at the start: one rank of several keeps it.
    `held` tells how many answers a journal holds beyond so many spent. Raises UserError on an
    unreadable file.
    """

    def __init__(
        self,
        purpose: str,
        limit: int | None = None,
        path: Path | None = None,
        *,
        writes: bool = True,
        held: Callable[[int], int] = lambda spent: 0,
    ) -> None:
        self.purpose, self.limit, self.spent, self.asked = purpose, limit, 0, 0
        self._held = held
        self._path = path if writes else None
        self._file: int | None = None
        if path is not None and path.exists():
            whole, self.asked = _last_count(path)
            if writes:
                with path.open("r+b") as file:
                    file.truncate(whole)
            self.spent = self.asked

    @property
    def asked_again(self) -> int:
        """Images charged that are not part of the present history: steps lost and replayed."""
        return self.asked - self.spent

    @property
    def lost(self) -> int:
        """Images charged whose answers neither the present history nor a journal holds."""
        return self.asked_again - self._held(self.spent)

    def charge(self, images: int, held: int = 0) -> None:
        """Add images to the bill, durably, before they are shown; `held` of them are paid already.

        Raises Overdraft, UserError.
        """
        if not 0 <= held <= images:
            raise UserError(f"cannot charge {images} images of which {held} are paid")
        if self.limit is not None and self.spent + images > self.limit:
            raise Overdraft(
                f"{self.purpose}: {images} images more than the {self.spent} spent"
                f" would pass the limit of {self.limit}"
            )
        if self._path is not None and not 0 < held == images:
            self._write_durably(self._path, b"%d\n" % (self.asked + images - held))
        self.asked += images - held
        self.spent += images

    def rewind(self, spent: int) -> None:
        """Go back to the history of a snapshot: what came after it was asked in vain."""
        if not 0 <= spent <= self.asked:
            raise UserError(f"{self.purpose}: the snapshot has {spent} images, the account {self.asked}")
        self.spent = spent

    def _write_durably(self, path: Path, line: bytes) -> None:
        """Add a line to the file opened first: another run that has taken its place is not charged."""
        try:
            if self._file is None:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                weakref.finalize(self, os.close, self._file)
            if not os.fstat(self._file).st_nlink:
                raise UserError(f"{path} was deleted or replaced while the run went on; nothing was asked")
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; nothing was asked") from error


def _last_count(path: Path) -> tuple[int, int]:
    """Return (length of the whole lines, last count) of an account file; a torn end is dropped."""
    whole = path.read_bytes().rpartition(b"\n")[0]
    if not whole:
        return 0, 0
    last = whole.rpartition(b"\n")[2]
    if not last.isdigit():
        raise UserError(f"{path} is no account: its last line is {last[:20]!r}; restore it from a copy")
    return len(whole) + 1, int(last)


CACHED = 64  # images that a CPU hashes at once: twice as fast as all, which its cache does not hold
_SHOWN = np.dtype([("digest", "<i8"), ("label", "<u2")])


class Shown:
    """A record of every image shown, in order: a 64-bit digest and the class answered.

    Ten bytes an image; in a file if a path is given. Kept on the device until `flush`. Without
    `writes` the file is only read, at the start: one rank of several keeps it.
    """

    def __init__(self, path: Path | None = None, *, writes: bool = True) -> None:
        self._path = path if writes else None
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._kept = np.empty(0, _SHOWN)
        if path is not None and path.exists():
            raw = path.read_bytes()
            self._kept = np.frombuffer(raw[: len(raw) // _SHOWN.itemsize * _SHOWN.itemsize], _SHOWN)

    def add(self, x: Float[Tensor, "b c h w"], answer: Float[Tensor, "b k"]) -> None:
        """Note one answered batch, with what the other ranks asked."""
        self._fresh.append((parallel.gather(digest(x)), parallel.gather(answer.argmax(1))))

    def flush(self) -> None:
        """Move what was noted since the last flush off the device and into the file."""
        if not self._fresh:
            return
        rows = np.empty(sum(len(d) for d, _ in self._fresh), _SHOWN)
        rows["digest"] = torch.cat([d for d, _ in self._fresh]).cpu().numpy()
        rows["label"] = torch.cat([label for _, label in self._fresh]).cpu().numpy()
        self._fresh.clear()
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(rows.tobytes())
        self._kept = np.concatenate([self._kept, rows])

    def rewind(self, images: int) -> None:
        """Forget all but the first images, as a snapshot of that history wants. Raises UserError."""
        self._fresh.clear()
        if len(self._kept) < images:
            raise UserError(f"the record of images shown has {len(self._kept)}, the snapshot {images}")
        self._kept = self._kept[:images]
        if self._path is not None:
            with self._path.open("ab") as file:
                file.truncate(images * _SHOWN.itemsize)

    @property
    def unique(self) -> int:
        """Number of different images shown."""
        self.flush()
        return len(np.unique(self._kept["digest"]))

    def kept(self) -> tuple[list[int], int]:
        """Return the class answered to each image, in order, and how many different images they were."""
        self.flush()
        return self._kept["label"].tolist(), self.unique

    def histogram(self) -> dict[int, int]:
        """Return how often each class was answered; classes never answered are left out."""
        self.flush()
        labels, counts = np.unique(self._kept["label"], return_counts=True)
        return {int(label): int(count) for label, count in zip(labels, counts, strict=True)}


def digest(x: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b"]:
    """Return a 64-bit multilinear hash of each image's float32 bits, on its device.

    Integer arithmetic: the value depends on neither the order of summation nor the batch.
    """
    bits = x.detach().float().flatten(1).contiguous().view(torch.int32)
    place = torch.arange(1, bits.shape[1] + 1, device=x.device)
    weights = place * -7046029254386353131  # 2^64 / golden ratio, odd, as a signed number
    weights = (weights ^ (weights >> 29)) * -4658895280553007687 | 1
    found = []
    for part in torch.split(bits, CACHED if x.device.type == "cpu" else max(1, len(bits))):
        mixed = part.long().mul_(-7723592293110705685)
        found.append((mixed ^ (mixed >> 32)).mul_(weights).sum(1))
    return torch.cat(found)
