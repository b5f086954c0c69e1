"""What can still be read of a journal, whatever has happened to its file, and a new file made of it."""

import contextlib
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from dualstudent.errors import UserError
from dualstudent.journal.book import Journal
from dualstudent.journal.guard import IN_USE, SOUND, meta, odd, reading, timely
from dualstudent.journal.rows import ROWS, Row, connect, faults, reason, row_of, traffic_in
from dualstudent.spec import Traffic

END = (" ORDER BY purpose, position", " ORDER BY purpose DESC, position DESC")
_ADD = "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass
class Found:
    """What a journal's file holds: its rows in order, and in words what is wrong with it."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    run: str | None = None  # whose journal it is, if that can be read
    begun: list[tuple[str, int, int]] = field(default_factory=list)  # purpose, first, images of each question
    sessions: list[tuple[float, int, str]] = field(default_factory=list)  # began, replayed, traffic
    traffic: Traffic = field(default_factory=Traffic)
    repaired: bool = False

    def of(self, purpose: str) -> list[Row]:
        """Return the rows of one purpose."""
        return [row for row in self.rows if row.purpose == purpose]


def salvage(path: Path) -> Found:
    """Read what can be read of a journal; nothing is changed. Raises UserError without one, or in use."""
    if not path.exists():
        raise UserError(f"{path} is missing: put it back from a copy")
    found = Found()
    with reading(path) as file, timely(file, path):
        try:
            known = meta(file, path)
            found.run, found.repaired = known.get("run"), "repaired" in known
        except sqlite3.Error as error:
            _unless_in_use(error, path)
            found.problems.append(f"nothing can be read: {error}")
            return found
        except UserError as error:
            found.problems.append(str(error))
            return found
        found.problems += faults(file, thorough=True)
        _answers(file, found)
        with contextlib.suppress(sqlite3.Error):
            found.problems += odd(file)
            where = " WHERE {} ORDER BY id"
            text = "SELECT purpose, first, images FROM begun" + where.format(SOUND["begun"])
            found.begun = file.execute(text).fetchall()
            text = "SELECT began, replayed, traffic FROM sessions" + where.format(SOUND["sessions"])
            found.sessions = file.execute(text).fetchall()
            found.traffic = traffic_in(file)
    return found


def rebuild(path: Path, run: str, found: Found) -> None:
    """Write a new journal of what was found of a damaged one. Raises UserError."""
    path.unlink(missing_ok=True)
    Journal(path, run).close()
    with contextlib.closing(connect(path)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
            file.execute("DELETE FROM sessions")
            file.execute("INSERT INTO meta VALUES ('repaired', 'yes')")
            file.executemany(_ADD, map(Row.values, found.rows))
            add = "INSERT INTO begun (purpose, first, images, boot) VALUES (?, ?, ?, '')"  # all may be sent
            file.executemany(add, found.begun)
            add = "INSERT INTO sessions (began, replayed, traffic) VALUES (?, ?, ?)"
            file.executemany(add, found.sessions)
            file.execute("COMMIT")
        except sqlite3.Error as error:
            raise UserError(f"cannot write {path}: {reason(error)}") from error


def _answers(file: sqlite3.Connection, found: Found) -> None:
    """Read the rows from the front, and what lies behind a damaged page from the back."""
    rows: dict[tuple[str, int], Row] = {}
    changed = 0
    for order in END:
        try:
            for values in file.execute(f"{ROWS} WHERE {SOUND['answers']}{order}"):
                row = row_of(values)
                if row is None:
                    changed += 1
                else:
                    rows[row.purpose, row.position] = row
        except (sqlite3.Error, TypeError) as error:
            found.problems.append(f"some answers cannot be read: {error}")
            continue
        break
    if changed:
        found.problems.append(f"{changed} answers were changed: their sums do not fit")
    found.rows = [rows[key] for key in sorted(rows)]


def _unless_in_use(error: sqlite3.Error, path: Path) -> None:
    if str(getattr(error, "sqlite_errorname", "")).startswith(IN_USE):
        raise UserError(f"the journal {path}: {reason(error)}") from error
