"""Exact, atomic snapshots of a run's state and account; the previous one is kept."""

import logging
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dualstudent import parallel
from dualstudent.errors import UserError
from dualstudent.files import why
from dualstudent.ledger import Account
from dualstudent.methods import State

FORMAT = "dualstudent snapshot 1"
log = logging.getLogger(__name__)


class Snapshots:
    """The snapshot of one run, at `path`, and the one before it beside it.

    `identity` tells runs apart: a snapshot of another one is refused. `flush` is called before each
    save, so that what a snapshot counts on is on disk first. Due again after `seconds`, or after
    twenty times the time that the last save took.
    """

    def __init__(
        self,
        path: Path,
        identity: str,
        seconds: float = 20.0,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.previous = path, path.with_name(path.stem + ".previous" + path.suffix)
        self.identity, self.seconds, self.flush = identity, seconds, flush
        self._next = time.monotonic() + seconds

    @property
    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() >= self._next

    def save(self, step: int, state: State, account: Account) -> None:
        """Write a snapshot; a crash at any moment leaves this one or the one before. Raises UserError."""
        start = time.monotonic()
        self.flush()
        parts = {name: part.state_dict() for name, part in _parts(state).items()}
        values = {"format": FORMAT, "identity": self.identity, "step": step, "spent": account.spent}
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(values | {"state": parts}, file)
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists():
                self.path.replace(self.previous)
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot write the snapshot {self.path}: {why(error)}") from error
        took = time.monotonic() - start
        self._next = time.monotonic() + max(self.seconds, 20 * took if self.seconds else 0)

    def load(self, state: State, account: Account) -> int | None:
        """Restore state and account and return the step; None for a run that has not begun.

        A damaged or foreign one is reported and the previous one used; only then is it set aside.
        Raises UserError where none fits, where the account has paid less than the snapshot says, and
        where there is none although the account has paid.
        """
        found = [path for path in (self.path, self.previous) if path.exists()]
        problems: list[str] = []
        for path in found:
            try:
                values = self._read(path)
                _restore(state, values["state"], path)
            except _Unusable as error:
                problems.append(str(error))
                continue
            account.rewind(values["spent"])
            for problem, broken in zip(problems, found, strict=False):
                log.warning(
                    "%s; going on from %s, %d images are asked again", problem, path.name, account.lost
                )
                if parallel.rank() == 0:
                    broken.replace(broken.with_name(broken.name + ".damaged"))
            return int(values["step"])
        if problems:
            raise UserError("no usable snapshot, nothing was changed: " + "; ".join(problems))
        if account.asked:
            raise UserError(
                f"{self.path} is missing, and {account.asked} images are paid: put it back,"
                " or begin anew with 'extract … --overwrite'"
            )
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            with path.open("rb") as file:
                return self._parsed(file, path)
        except OSError as error:  # it could not be opened: nothing is set aside for that
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    def _parsed(self, file: BinaryIO, path: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            file.seek(0)
            values = torch.load(file, map_location="cpu", weights_only=True) if damaged is None else None
        except Exception as error:  # a torn file can fail in any way
            _unless_memory(error, path)
            raise _Unusable(f"{path} is truncated or no snapshot ({why(error)})") from error
        if damaged is not None:
            raise _Unusable(f"{path} is damaged at {damaged}")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise _Unusable(f"{path} is no snapshot of this program")
        if not {"identity", "step", "spent", "state"} <= values.keys():
            raise _Unusable(f"{path} is no whole snapshot")
        if values["identity"] != self.identity:
            raise _Unusable(f"{path} belongs to another run")
        return values


def _unless_memory(error: Exception, path: Path) -> None:
    """Raise UserError where memory, not the file, is what is wanting."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "alloc" in str(error):
        raise UserError(f"out of memory while reading {path}") from error


class _Unusable(UserError):
    """A snapshot that cannot be gone on from; the one before it may."""


def _parts(state: State) -> dict[str, Any]:
    """Return the modules and optimisers of a state by field name."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if value is not None}


def _restore(state: State, saved: dict[str, Any], path: Path) -> None:
    parts = _parts(state)
    if parts.keys() != saved.keys():
        raise _Unusable(f"{path} belongs to another recipe: it holds {', '.join(saved)}")
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except (RuntimeError, ValueError, KeyError) as error:
        _unless_memory(error, path)
        raise _Unusable(f"{path} belongs to another recipe: {str(error).splitlines()[-1].strip()}") from error
