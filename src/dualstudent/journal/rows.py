"""What a journal's file is made of: its tables, its rows, and what may be wrong with it."""

import contextlib
import hashlib
import json
import sqlite3
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualstudent.errors import UserError
from dualstudent.spec import Traffic

FORMAT = "dualstudent journal 1"
ATTACK = "attack"  # purpose of what a method asks; the owner's questions have others
DTYPES = ("<f4", "<f8")  # of answers
LONGEST = 1 << 26  # bytes of one value
MOST = 10**12  # no count of a run, and no place in it, is larger
PATIENCE = 1.0  # seconds to wait for another process that has the file open
TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE answers (
    purpose TEXT NOT NULL, position INTEGER NOT NULL, digest BLOB NOT NULL, answer BLOB NOT NULL,
    dtype TEXT NOT NULL, time REAL NOT NULL, attempts INTEGER NOT NULL, sum BLOB NOT NULL,
    PRIMARY KEY (purpose, position)) WITHOUT ROWID;
CREATE TABLE begun (
    id INTEGER PRIMARY KEY, purpose TEXT NOT NULL, first INTEGER NOT NULL, images INTEGER NOT NULL,
    boot TEXT NOT NULL);
CREATE TABLE sent (question INTEGER NOT NULL, first INTEGER NOT NULL, images INTEGER NOT NULL);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, began REAL NOT NULL, replayed INTEGER NOT NULL DEFAULT 0,
    traffic TEXT NOT NULL DEFAULT '{}');
"""
ROWS = "SELECT position, digest, answer, dtype, time, attempts, sum, purpose FROM answers"
REASONS = {
    "SQLITE_FULL": "the disk is full: make room, then resume",
    "SQLITE_READONLY": "it cannot be written: mend the permissions of its folder, then resume",
    "SQLITE_CANTOPEN": "it cannot be opened or made: is its folder there, and writable?",
    "SQLITE_PERM": "it cannot be opened: mend its permissions, then resume",
    "SQLITE_BUSY": "another process is using it: is this run going on elsewhere?",
    "SQLITE_LOCKED": "another process is using it: is this run going on elsewhere?",
    "SQLITE_CORRUPT": "it is damaged: 'dualstudent journal verify RUN' says how far, 'repair' keeps the rest",
    "SQLITE_NOTADB": "it is no journal: put it back from a copy, or 'dualstudent journal repair RUN'",
    "SQLITE_TOOBIG": "a value in it is longer than any answer: put it back from a copy",
    "SQLITE_INTERRUPT": "it takes longer to read than any of its length: put it back from a copy",
    "SQLITE_IOERR": "it cannot be read or written: is the disk full, or gone?",
}


@dataclass(frozen=True)
class Row:
    """One image's answer: position in the history of its purpose, digest as sent, when, which attempt."""

    position: int
    digest: bytes
    answer: NDArray[Any]
    time: float  # seconds since 1970
    attempts: int
    purpose: str = ATTACK

    def values(self) -> tuple[Any, ...]:
        """Return what the table of answers holds of it."""
        raw, dtype = self.answer.tobytes(), self.answer.dtype.str
        total = sum_of(self.purpose, self.position, self.digest, raw, dtype)
        return (self.purpose, self.position, self.digest, raw, dtype, self.time, self.attempts, total)


def connect(path: Path, mode: str = "rwc", *, immutable: bool = False) -> sqlite3.Connection:
    """Open a SQLite file (`mode` "ro", "rw", or "rwc", which makes it), without looking at what is in it.

    `immutable`: nobody writes it, and nothing is written beside it. Raises UserError.
    """
    try:
        address = f"{path.absolute().as_uri()}?mode={mode}{'&immutable=1' if immutable else ''}"
        file = sqlite3.connect(address, PATIENCE, isolation_level=None, check_same_thread=False, uri=True)
        file.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        file.text_factory = _text
        file.execute("PRAGMA trusted_schema = OFF")
        return file
    except sqlite3.Error as error:
        raise UserError(f"the journal {path}: {reason(error)}") from error


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def reason(error: sqlite3.Error) -> str:
    """Return what is wrong and what mends it."""
    name = getattr(error, "sqlite_errorname", "") or ""
    known = next((said for code, said in REASONS.items() if name.startswith(code)), None)
    return f"{error} ({name})" if known is None else known


def faults(file: sqlite3.Connection, *, most: int = 20, thorough: bool = False) -> list[str]:
    """Return what SQLite finds wrong with the structure of a file."""
    check = "integrity_check" if thorough else "quick_check"
    try:
        found = [str(row[0]).replace("\n", " ") for row in file.execute(f"PRAGMA {check}({most})")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if found == ["ok"] else found


def row_of(values: tuple[Any, ...]) -> Row | None:
    """Return a stored row, None for one whose sum does not fit: some of it was changed."""
    position, digest, raw, dtype, when, attempts, total, purpose = values
    try:
        if dtype not in DTYPES or total != sum_of(purpose, position, digest, raw, dtype):
            return None
        return Row(position, digest, np.frombuffer(raw, dtype), when, attempts, purpose)
    except (TypeError, ValueError, AttributeError):
        return None


def traffic_in(file: sqlite3.Connection) -> Traffic:
    """Return the sum of all sessions' traffic; of what was damaged, nothing: they are counts only."""
    total = Traffic()
    for (text,) in file.execute("SELECT traffic FROM sessions WHERE length(traffic) <= 10000"):
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            total = plus(total, _counted(json.loads(text)))
    return total


def _counted(values: Any) -> Traffic:
    """Return stored counters. Raises ValueError, TypeError where they are none."""
    traffic = Traffic(**{f.name: values[f.name] for f in fields(Traffic) if f.name in values})
    names = [f.name for f in fields(Traffic) if f.name not in ("statuses", "waiting")]
    for name, count in ({name: getattr(traffic, name) for name in names} | traffic.statuses).items():
        if type(count) is not int or not 0 <= count <= MOST or not name.replace("_", "").isalnum():
            raise ValueError("no count")
    if not 0 <= float(traffic.waiting) <= MOST:
        raise ValueError("no time")
    return traffic


def sum_of(purpose: str, position: int, digest: bytes, raw: bytes, dtype: str) -> bytes:
    """Return what tells whether a row was changed: 8 bytes over all that it says of an answer."""
    head = f"{purpose}/{position}/{dtype}/".encode()
    return hashlib.blake2b(head + digest + raw, digest_size=8).digest()


def copied(traffic: Traffic) -> Traffic:
    """Return counters that stay as they are now."""
    return replace(traffic, statuses=dict(traffic.statuses))


def plus(one: Traffic, two: Traffic, sign: int = 1) -> Traffic:
    """Return the sum of two counts, the difference for the sign −1."""
    names = [field.name for field in fields(Traffic) if field.name != "statuses"]
    values = {name: getattr(one, name) + sign * getattr(two, name) for name in names}
    known = dict.fromkeys([*one.statuses, *two.statuses])
    statuses = {code: one.statuses.get(code, 0) + sign * two.statuses.get(code, 0) for code in known}
    return Traffic(**values, statuses={code: count for code, count in statuses.items() if count})


def minus(one: Traffic, two: Traffic) -> Traffic:
    """Return what the first count has grown by since the second."""
    return plus(one, two, -1)


def ranges(places: list[int]) -> list[tuple[int, int]]:
    """Return sorted places as (first, count) of each unbroken run."""
    found: list[tuple[int, int]] = []
    for at in places:
        if found and sum(found[-1]) == at:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((at, 1))
    return found
