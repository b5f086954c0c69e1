"""Journals from elsewhere: nothing that a file says is read before its tables are those of a journal, in a
time that its length bounds, and reading changes nothing.
"""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from dualstudent.errors import UserError
from dualstudent.journal.rows import FORMAT, MOST, TABLES, connect, reason

SLOWEST = 2e6  # bytes a second that any disk and processor read
LEAST = 30.0  # seconds that any reading may take
PURPOSE = "typeof(purpose) = 'text' AND length(purpose) <= 100"
PLACES = f"typeof(first) = 'integer' AND first BETWEEN 0 AND {MOST} \
AND typeof(images) = 'integer' AND images BETWEEN 1 AND {MOST}"
SOUND = {  # of each table, what holds of every row that a run writes: any column may hold any type
    "answers": f"{PURPOSE} AND typeof(position) = 'integer' AND position BETWEEN 0 AND {MOST} \
AND typeof(digest) = 'blob' AND length(digest) = 16 AND typeof(answer) = 'blob' AND length(answer) >= 4 \
AND dtype IN ('<f4', '<f8') AND typeof(time) = 'real' AND time BETWEEN 0 AND 1e12 \
AND typeof(attempts) = 'integer' AND attempts BETWEEN 1 AND {MOST} \
AND typeof(sum) = 'blob' AND length(sum) = 8",
    "begun": f"{PURPOSE} AND {PLACES} AND typeof(boot) = 'text' AND length(boot) <= 100",
    "sent": f"typeof(question) = 'integer' AND {PLACES}",
    "sessions": f"typeof(began) = 'real' AND began BETWEEN 0 AND 1e12 AND typeof(replayed) = 'integer' \
AND replayed BETWEEN 0 AND {MOST} AND typeof(traffic) = 'text' AND length(traffic) <= 10000",
}
_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master"
IN_USE = ("SQLITE_BUSY", "SQLITE_LOCKED")


def meta(file: sqlite3.Connection, path: Path) -> dict[str, str]:
    """Return what a journal says of itself. Raises UserError on a file that is none, whatever it claims.

    A view in the place of a table might never end, or hold what no disk does: tables are compared first.
    """
    known: dict[str, str] = {}
    if sorted(file.execute(_SCHEMA).fetchmany(len(_tables()) + 1), key=str) == _tables():
        text = "SELECT name, value FROM meta WHERE name IN ('format', 'run', 'repaired')"
        known = {str(name): str(value) for name, value in file.execute(text)}
    if known.get("format") != FORMAT:
        raise UserError(
            f"{path} is no journal of this program, or of another version: put the run's own back"
        )
    return known


def odd(file: sqlite3.Connection) -> list[str]:
    """Return which tables hold rows that no run writes, and how many."""
    found = []
    for table, sound in SOUND.items():
        [(count,)] = file.execute(f"SELECT count(*) FROM {table} WHERE NOT ({sound})")
        if count:
            found.append(f"{count:,} rows of '{table}' hold what no run writes")
    return found


@contextlib.contextmanager
def timely(file: sqlite3.Connection, path: Path) -> Iterator[None]:
    """End in sqlite3.OperationalError what takes longer than a file of this length can."""
    length = sum(64 * 512 + place.stat().st_blocks * 512 for place in _files(path))
    deadline = time.monotonic() + LEAST + length / SLOWEST
    file.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    try:
        yield
    finally:
        file.set_progress_handler(None, 0)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a journal to read it, and change nothing, in a folder that cannot be written to either.

    The log that a killed process left is read, too. Raises UserError where another process has it.
    """
    log, index = _beside(path, "-wal"), _beside(path, "-shm")
    with contextlib.ExitStack() as stack:
        if not (log.exists() and log.stat().st_size):  # a run that goes on has a log
            yield stack.enter_context(contextlib.closing(connect(path, "ro", immutable=True)))
            return
        if not index.exists():  # SQLite makes one to read a log, and leaves it
            stack.callback(_gone, index)
        try:
            file = stack.enter_context(contextlib.closing(connect(path, "ro")))
            file.execute("PRAGMA schema_version").fetchone()
        except sqlite3.Error as error:
            if str(getattr(error, "sqlite_errorname", "")).startswith(IN_USE):
                raise UserError(f"the journal {path}: {reason(error)}") from error
            file = stack.enter_context(_copied(path))
        yield file


@contextlib.contextmanager
def _copied(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of a journal, where its folder lets no log be read."""
    with tempfile.TemporaryDirectory() as folder:
        if sum(place.stat().st_size for place in _files(path)) > shutil.disk_usage(folder).free:
            raise UserError(f"{path} cannot be read where it is, and {folder} has no room for a copy")
        for place in _files(path):
            shutil.copyfile(place, os.path.join(folder, place.name))
        with contextlib.closing(connect(Path(folder) / path.name, "rw")) as file:
            yield file


@cache
def _tables() -> list[tuple[str, ...]]:
    """Return what SQLite says of a journal's tables, in order."""
    with contextlib.closing(sqlite3.connect(":memory:")) as file:
        file.executescript(TABLES)
        return sorted(file.execute(_SCHEMA), key=str)


def _files(path: Path) -> list[Path]:
    return [place for place in (path, _beside(path, "-wal")) if place.is_file()]


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _gone(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
