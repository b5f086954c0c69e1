"""Answers that are paid for, on disk before a student learns from them: a SQLite file in the run.

It also keeps what went over the wire, and which questions were begun, so that a crash can neither
lose an answer nor hide that one was paid twice.
"""

from dualstudent.journal.book import Journal
from dualstudent.journal.rows import ATTACK, Row, ranges
from dualstudent.journal.salvage import Found, rebuild, salvage

__all__ = ["ATTACK", "Found", "Journal", "Row", "ranges", "rebuild", "salvage"]
