"""The journal that a run writes: one durable transaction an answered request."""

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dualstudent.errors import UserError
from dualstudent.journal.guard import meta, odd, timely
from dualstudent.journal.rows import (
    ATTACK,
    FORMAT,
    REASONS,
    ROWS,
    TABLES,
    Row,
    connect,
    copied,
    faults,
    minus,
    reason,
    row_of,
    traffic_in,
)
from dualstudent.spec import Traffic


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


T = TypeVar("T")
BOOT = _boot()  # when the machine was last started; empty where that is not known
GRACE = 2.0  # seconds that answers under way have when a run ends in an error


class Journal:
    """The journal of one run; `run` is its name, and another run's file is refused.

    `paid` says how many images were charged before: then the file must be there. Only one process
    can have it open. Safe to use from several threads. Raises UserError, in one line, on a file that
    is missing, damaged, in use, of another run, or cannot be written.
    """

    def __init__(self, path: Path, run: str, *, paid: int = 0) -> None:
        self.path, self._lock = path, threading.RLock()
        self._followed: tuple[Traffic, Traffic] | None = None
        self._waited, self._takers = 0.0, list[threading.Thread]()
        if paid and not (path.exists() and path.stat().st_size):
            state = "empty" if path.exists() else "missing"
            raise UserError(
                f"{path} is {state}, and {paid} images are paid: put it back from a copy,"
                " or begin anew with 'extract … --overwrite'"
            )
        undone = path.with_name(path.name + "-journal")  # SQLite would do what it says, in other files too
        if undone.exists() and not paid:  # killed while it was made
            for place in (undone, path):
                place.unlink(missing_ok=True)
        elif undone.exists():
            raise UserError(f"{undone} is none of this program's files: move it away")
        if any(place.exists() and not os.access(place, os.W_OK) for place in (path, path.parent)):
            raise UserError(f"the journal {path}: {REASONS['SQLITE_READONLY']}")
        self._file = connect(path)
        try:
            with self._saying(), timely(self._file, path):
                self._prepare(run, paid)
        except BaseException:
            self._file.close()
            raise

    def _prepare(self, run: str, paid: int) -> None:
        self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
        mode = self._file.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise UserError(
                f"{self.path}: this file system keeps no write-ahead log ({mode}): choose another"
            )
        self._file.execute("PRAGMA synchronous = FULL")
        if not self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            with self._transaction():
                for statement in TABLES.split(";\n"):
                    self._file.execute(statement)
                rows = [("format", FORMAT), ("run", run)]
                self._file.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        known = meta(self._file, self.path)
        if known.get("run") != run:
            raise UserError(f"{self.path} is another run's journal: put this run's own back from a copy")
        self.repaired = "repaired" in known
        damage = faults(self._file, most=1) or odd(self._file) or self._beyond(paid)
        if damage:
            raise UserError(f"{self.path}: {REASONS['SQLITE_CORRUPT']} ({damage[0]})")
        with self._transaction():  # a write that proves that writing works, before anything is asked
            began = self._file.execute("INSERT INTO sessions (began) VALUES (?)", (time.time(),))
            self._session = began.lastrowid

    def _beyond(self, paid: int) -> list[str]:
        """Return what is told of images that were never charged, where it is known how many were."""
        text = "SELECT count(*) FROM answers WHERE position >= ?"
        begun = "SELECT count(*) FROM begun WHERE first + images > ?"
        beyond = sum(self._file.execute(each, (paid,)).fetchone()[0] for each in (text, begun))
        return [f"{beyond:,} rows are about images that were never charged"] if paid and beyond else []

    def held(self, purpose: str, first: int, images: int) -> dict[int, Row]:
        """Return the rows held of the positions first … first + images, by position. Raises UserError."""
        with self._saying():
            where = " WHERE purpose = ? AND position >= ? AND position < ?"
            found = self._file.execute(ROWS + where, (purpose, first, first + images)).fetchall()
            rows = {row.position: row for row in (self._whole(values) for values in found)}
            if rows:
                with self._quickly():  # a count only
                    count = "UPDATE sessions SET replayed = replayed + ? WHERE id = ?"
                    self._file.execute(count, (len(rows), self._session))
        return rows

    def before(self, purpose: str, first: int, images: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return of each image how often it was sent without being answered, and whether a charge is left.

        One is left where the last question about it ended before its request was sent. Which were sent is
        known only of questions that told, since the machine was last started: the power may have taken it.
        """
        sent, left = np.zeros(images, np.int64), np.zeros(images, np.bool_)
        with self._saying():
            overlap = " WHERE purpose = ? AND first < ? AND first + images > ? ORDER BY id"
            text = "SELECT id, first, images, boot FROM begun" + overlap
            for number, start, count, boot in self._file.execute(text, (purpose, first + images, first)):
                low, high = max(first, start), min(first + images, start + count)
                went = np.full(high - low, boot != BOOT or not boot)
                for at, n in self._file.execute(
                    "SELECT first, images FROM sent WHERE question = ?", (number,)
                ):
                    went[max(0, at - low) : max(0, at + n - low)] = True
                inner = slice(low - first, high - first)
                sent[inner] += went
                left[inner] = ~went
        return sent, left

    def begin(self, purpose: str, first: int, images: int, *, tells: bool = False) -> int:
        """Note that a question is charged and will be asked; return its number.

        `tells` says that `sending` will be called before each of its requests. Survives the end of this
        process, not of the power.
        """
        with self._saying(), self._quickly():
            add = "INSERT INTO begun (purpose, first, images, boot) VALUES (?, ?, ?, ?)"
            row = (purpose, first, images, BOOT if tells else "")
            return self._file.execute(add, row).lastrowid or 0

    def sending(self, question: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Note that a request of a question is sent, first or again, with the images of (first, images) each.

        What went over the wire until then is noted, too: of a request that broke off before, the bill knows.
        """
        with self._saying(), self._quickly():
            rows = [(question, first, images) for first, images in ranges]
            self._file.executemany("INSERT INTO sent VALUES (?, ?, ?)", rows)
            self._note()

    def record(
        self,
        purpose: str,
        positions: Sequence[int],
        digests: Sequence[bytes],
        answers: NDArray[Any],
        attempts: Sequence[int],
        *,
        done: tuple[int, int] | None = None,
    ) -> None:
        """Write one answered request, (b, k) answers of float32 or float64, durably: all of it or nothing.

        `done`, first and images, says that it was the last request of that question. Raises UserError.
        """
        now = time.time()
        rows = [
            Row(int(at), digest, answer, now, int(attempt), purpose).values()
            for at, digest, answer, attempt in zip(positions, digests, answers, attempts, strict=True)
        ]
        said = f"; {len(rows)} answers could not be kept, nothing more is asked"
        with self._saying(said), self._transaction():
            self._file.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            if done is not None:
                within = "FROM begun WHERE purpose = ? AND first >= ? AND first + images <= ?"
                where = (purpose, done[0], sum(done))
                self._file.execute(f"DELETE FROM sent WHERE question IN (SELECT id {within})", where)
                self._file.execute(f"DELETE {within}", where)
            self._note()

    def ahead(self, answers: Iterator[T]) -> Iterator[T]:
        """Take what comes in a thread of its own, so that it is kept even while nobody waits for it.

        Counts the time that the taker waits. What is under way when the journal closes has a moment left.
        """
        came: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def take() -> None:
            try:
                for answer in answers:
                    came.put((answer, None))
            except BaseException as error:
                came.put((None, error))
            else:
                came.put((None, StopIteration()))

        thread = threading.Thread(target=take, daemon=True)
        self._takers = [taker for taker in self._takers if taker.is_alive()] + [thread]
        thread.start()
        return self._given(came)

    def _given(self, came: "SimpleQueue[tuple[T | None, BaseException | None]]") -> Iterator[T]:
        while True:
            start = time.perf_counter()
            answer, error = came.get()
            self._waited += time.perf_counter() - start
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert answer is not None
            yield answer

    def follow(self, traffic: Traffic) -> None:
        """Keep from now on what a service's counters grow by, with each answered request."""
        self._followed = (traffic, copied(traffic))

    def traffic(self) -> Traffic:
        """Return what went over the wire in all sessions of the run."""
        with self._saying(), self._transaction():
            self._note()
            return traffic_in(self._file)

    def replayed(self) -> int:
        """Return how many answers were taken from here instead of asking, in all sessions."""
        with self._saying():
            return int(self._file.execute("SELECT coalesce(sum(replayed), 0) FROM sessions").fetchone()[0])

    def count(self, purpose: str, first: int = 0, stop: int | None = None) -> int:
        """Return how many positions from `first` to before `stop` are held."""
        with self._saying():
            text = "SELECT count(*) FROM answers WHERE purpose = ? AND position >= ? AND position < ?"
            where = (purpose, first, 2**62 if stop is None else stop)
            return int(self._file.execute(text, where).fetchone()[0])

    def whole(self, spent: int) -> None:
        """Raise UserError unless all answers that a snapshot has learnt are held."""
        held = self.count(ATTACK, 0, spent)
        if held != spent and not self.repaired:
            raise UserError(
                f"{self.path} holds {held} of the {spent} answers that the snapshot has learnt: put it back"
                " from a copy, or 'dualstudent journal repair RUN' to go on with the rest; nothing was asked"
            )

    def close(self) -> None:
        """Write down the last of the traffic, and let others open the file."""
        deadline = time.monotonic() + GRACE
        for taker in self._takers:
            taker.join(max(0.0, deadline - time.monotonic()))
        with self._lock, contextlib.suppress(UserError, sqlite3.Error):
            if self._followed is not None:
                with self._transaction():
                    self._note()
        with self._lock:
            self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _note(self) -> None:
        if self._followed is not None:
            now, before = self._followed
            text = json.dumps(asdict(minus(now, before)) | {"waiting": self._waited})
            self._file.execute("UPDATE sessions SET traffic = ? WHERE id = ?", (text, self._session))

    def _whole(self, values: tuple[Any, ...]) -> Row:
        row = row_of(values)
        if row is None:
            raise UserError(
                f"{self.path}: the answer to image {values[0]} is damaged; {REASONS['SQLITE_CORRUPT']}"
            )
        return row

    @contextlib.contextmanager
    def _quickly(self) -> Iterator[None]:
        """Write what may be lost with the power, though not with this process."""
        self._file.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._transaction():
                yield
        finally:
            self._file.execute("PRAGMA synchronous = FULL")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._file.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._file.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _saying(self, more: str = "") -> Iterator[None]:
        """Hold the file for one thread, and say in one line what is wrong with it."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise UserError(f"the journal {self.path}: {reason(error)}{more}") from error
