"""A run's journal looked at from outside: verified against the run, exported, repaired."""

import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dualstudent.errors import UserError
from dualstudent.experiment.folder import RunFolder, alone
from dualstudent.files import read_json, read_tensors, write_whole, yielding
from dualstudent.journal import ATTACK, Found, Row, ranges, rebuild, salvage
from dualstudent.ledger import Shown

ROOM, WIDEST = 10**7, 100  # values of an exported table: so many, or so many times what was answered


@dataclass(frozen=True)
class Verdict:
    """What a journal holds, in words, and what is wrong with it."""

    facts: dict[str, str]
    problems: list[str] = field(default_factory=list)


def verify_journal(path: str | Path) -> Verdict:
    """Compare a run's journal with itself and with what else the run holds; nothing is changed.

    Raises UserError where the run has no journal, or it is in use.
    """
    run = RunFolder(path)
    name = _name(run)
    found = salvage(run.journal)
    problems = list(found.problems)
    if found.run is not None and found.run != name:
        problems.append("it is another run's journal")
    rows = found.of(ATTACK)
    kinds = Counter(_about(row.purpose) for row in found.rows)
    charged = run.charged()
    again = sum(row.attempts - 1 for row in found.rows)
    problems += _gaps(found)
    for what, asked in charged.items():
        if kinds[what] > asked:
            problems.append(f"{kinds[what]} answers to the {what}, but {asked} images are charged")
    problems += _beyond(found, charged)
    problems += _against_record(run, rows, found.repaired)
    problems += _against_result(run, rows, found.repaired)
    problems += _against_answers(run, found)
    facts = {
        "answers to the attack": f"{len(rows):,} of {charged['attack']:,} images charged",
        "unique images": f"{len({row.digest for row in rows}):,}",
        "answers to the audit": f"{kinds['audit']:,} of {charged['audit']:,} images charged",
        "answers to transferred attacks": f"{kinds['transfer']:,} of {charged['transfer']:,} images charged",
        "asked again": f"{again:,}",
        "begun and not answered": f"{sum(count for _, count in _open(found)):,}",
        "sessions": f"{len(found.sessions):,}",
        "requests": f"{found.traffic.requests:,}",
    }
    if found.repaired:
        facts["repaired"] = "yes: answers may be missing"
    return Verdict(facts, problems)


def export_journal(path: str | Path, out: Path) -> Verdict:
    """Write all answers of a run's journal that can be read as an NPZ file of plain arrays.

    Rows narrower than others end in NaN. Raises UserError where there is nothing to export.
    """
    run = RunFolder(path)
    _name(run)
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: give a name that ends in .npz")
    yielding(out, b"pk\x03\x04", "NPZ file")
    found = salvage(run.journal)
    if not found.rows:
        raise UserError(f"{run.journal} holds no answers: {'; '.join(found.problems) or 'nothing was asked'}")
    wide = max(len(row.answer) for row in found.rows)
    kind = np.result_type(*{row.answer.dtype for row in found.rows})
    if len(found.rows) * wide > ROOM + WIDEST * sum(len(row.answer) for row in found.rows):
        raise UserError(f"{run.journal} holds answers of up to {wide:,} classes, most far fewer: no table")
    answers = np.full((len(found.rows), wide), np.nan, kind)
    for to, row in zip(answers, found.rows, strict=True):
        to[: len(row.answer)] = row.answer
    content = io.BytesIO()
    np.savez(
        content,
        purpose=np.array([row.purpose for row in found.rows]),
        position=np.array([row.position for row in found.rows], np.int64),
        digest=np.stack([np.frombuffer(row.digest, np.uint8) for row in found.rows]),
        answer=answers,
        time=np.array([row.time for row in found.rows]),
        attempts=np.array([row.attempts for row in found.rows], np.int64),
    )
    write_whole(out, content.getvalue())
    return Verdict({"answers": f"{len(found.rows):,}"}, found.problems)


@alone
def repair_journal(path: str | Path) -> Verdict:
    """Make a new journal of what can be read of a damaged one, which is set aside. Raises UserError."""
    run = RunFolder(path)
    name = _name(run)
    found = salvage(run.journal) if run.journal.exists() else Found(problems=["it is missing"])
    if found.run not in (None, name):
        raise UserError(f"{run.journal} is another run's journal: put this run's own back, or move it away")
    problems = found.problems + _gaps(found) + _beyond(found, run.charged())
    problems += _against_record(run, found.of(ATTACK), found.repaired)
    if not problems:
        raise UserError(f"{run.journal} is whole: there is nothing to repair")
    fresh, aside = run.journal.with_name("journal.new"), run.journal.with_name("journal.sqlite.damaged")
    charged = run.charged()
    found.rows = [row for row in found.rows if row.position < charged.get(_about(row.purpose), 0)]
    found.begun = [q for q in found.begun if q[1] + q[2] <= charged.get(_about(q[0]), 0)]
    rebuild(fresh, name, found)
    if run.journal.exists():
        run.journal.replace(aside)
    for rest in ("-wal", "-shm"):
        run.journal.with_name(run.journal.name + rest).unlink(missing_ok=True)
    fresh.replace(run.journal)
    return Verdict({"answers kept": f"{len(found.rows):,}", "set aside": aside.name}, problems)


def _name(run: RunFolder) -> str:
    about = run.manifest().get("journal")
    if not isinstance(about, dict) or "run" not in about:
        raise UserError(f"{run.path} keeps no journal: its target was asked without one (see --journal)")
    return str(about["run"])


def _open(found: Found) -> list[tuple[int, int]]:
    """Return (first, images) of the attack's positions that were begun and are not answered."""
    return _minus([(first, n) for what, first, n in found.begun if what == ATTACK], _held(found))


def _gaps(found: Found) -> list[str]:
    """Return what is missing among the attack's answers: only questions in flight may be."""
    held = _held(found)
    missing = _minus(_minus([(0, sum(held[-1]))], held), _open(found)) if held else []
    words = [f"{first}" if n == 1 else f"{first} … {first + n - 1}" for first, n in missing]
    more = f" and {len(words) - 5} more" if len(words) > 5 else ""
    return [f"no answers to the images {', '.join(words[:5])}{more}"] if words else []


def _held(found: Found) -> list[tuple[int, int]]:
    return ranges([row.position for row in found.of(ATTACK)])


def _minus(spans: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return as (first, count) what of some spans is in none of the others, which are apart and in order.

    Never place by place: what a stranger's file says was begun may be larger than any memory.
    """
    left: list[tuple[int, int]] = []
    at = done = 0  # the next of the others; up to where all is told
    for first, count in sorted(spans):
        start, stop = max(first, done), first + count
        while at < len(others) and sum(others[at]) <= start:
            at += 1
        ahead = at
        while start < stop:
            begin, end = (others[ahead][0], sum(others[ahead])) if ahead < len(others) else (stop, stop)
            if start < begin:
                left.append((start, min(begin, stop) - start))
            start, ahead = max(start, end), ahead + 1
            if begin >= stop:
                break
        done = max(done, stop)
    return left


def _about(purpose: str) -> str:
    """Return which account a purpose is charged to."""
    return purpose.partition(" ")[0]


def _beyond(found: Found, charged: dict[str, int]) -> list[str]:
    """Return what a journal tells of images that were never charged, a line for each account."""
    ends = [(row.purpose, row.position + 1) for row in found.rows]
    ends += [(what, first + count) for what, first, count in found.begun]
    beyond = Counter(_about(what) for what, end in ends if end > charged.get(_about(what), 0))
    return [f"{count} rows of '{name[:20]}' are about images never charged" for name, count in beyond.items()]


def _against_record(run: RunFolder, rows: list[Row], repaired: bool) -> list[str]:
    """Compare the answers with the record of what the students were shown."""
    labels, unique = Shown(run.shown, writes=False).kept()
    held = {row.position: row for row in rows}
    known = [(held[at], label) for at, label in enumerate(labels) if at in held]
    problems = []
    if len(known) < len(labels) and not repaired:
        problems.append(f"{len(labels)} answers were learnt, {len(known)} of them are here")
    wrong = [row.position for row, label in known if int(row.answer.astype(np.float32).argmax()) != label]
    if wrong:
        problems.append(f"image {wrong[0]} and {len(wrong) - 1} more were learnt with another class")
    if len(known) == len(labels) and len({row.digest for row, _ in known}) != unique:
        problems.append(f"the images learnt are {unique} different ones, those here are not")
    return problems


def _against_result(run: RunFolder, rows: list[Row], repaired: bool) -> list[str]:
    """Compare the answers with what result.json says was spent."""
    if not run.result.exists():
        return []
    result = read_json(run.result)
    spent, unique = result.get("spent"), result.get("unique")
    learnt = [row for row in rows if isinstance(spent, int) and row.position < spent]
    if not isinstance(spent, int) or repaired or not result.get("complete"):
        return []  # a run that was stopped may have been in the middle of a question
    if len(learnt) != spent:
        return [f"result.json says {spent} images were spent, {len(learnt)} of their answers are here"]
    different = len({row.digest for row in learnt})
    return [] if unique == different else [f"result.json says {unique} unique images, here are {different}"]


def _against_answers(run: RunFolder, found: Found) -> list[str]:
    """Compare the audit's answers with the files in which the run keeps them."""
    problems = []
    for file in sorted(run.answers.glob("*.safetensors")):
        rows = found.of(f"audit {file.stem}")
        kept = read_tensors(file).get("answers", torch.empty(0, 0))
        if len(rows) != len(kept) and not found.repaired:
            problems.append(f"{file.name} holds {len(kept)} answers on test images, the journal {len(rows)}")
        elif [int(row.answer.astype(np.float32).argmax()) for row in rows] != kept.argmax(1).tolist():
            problems.append(f"{file.name} holds other answers on test images than the journal")
    return problems
