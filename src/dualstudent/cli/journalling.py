"""What `dualstudent journal` shows."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table

from dualstudent import experiment
from dualstudent.cli.parse import parse
from dualstudent.cli.show import console
from dualstudent.errors import unknown

USAGE = """usage: dualstudent journal verify RUN               compare it with itself and with the run
       dualstudent journal export RUN --out FILE.npz   write its answers as arrays
       dualstudent journal repair RUN               keep what can be read of a damaged one"""


@dataclass(frozen=True)
class VerifyForm:
    """Compare a run's journal with itself and with the run; exit code 1 if something is wrong."""

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class ExportForm:
    """Write the answers of a run's journal as an NPZ file; exit code 1 if some cannot be read."""

    run: tyro.conf.Positional[Path]
    out: Path  # the file, .npz: purpose, position, digest, answer, time, attempts


@dataclass(frozen=True)
class RepairForm:
    """Make a new journal of what can be read of a damaged one, which is set aside."""

    run: tyro.conf.Positional[Path]


def journal(args: list[str]) -> int:
    """Do one of the journal's commands; return 0, or 1 if something is wrong. Raises UserError."""
    verbs: dict[str, Callable[[list[str]], int]] = {"verify": _verify, "export": _export, "repair": _repair}
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if args[0] not in verbs:
        raise unknown("journal command", args[0], verbs)
    return verbs[args[0]](args[1:])


def _verify(args: list[str]) -> int:
    form = parse(VerifyForm, args, "journal verify", "Compare a run's journal with itself and with the run.")
    verdict = experiment.verify_journal(form.run)
    code = _show(f"{form.run}: the journal", verdict)
    if code == 0:
        console.print("whole: all that it says fits together")
    return code


def _export(args: list[str]) -> int:
    form = parse(ExportForm, args, "journal export", "Write the answers of a run's journal as an NPZ file.")
    return _show(str(form.out), experiment.export_journal(form.run, form.out))


def _repair(args: list[str]) -> int:
    form = parse(RepairForm, args, "journal repair", "Make a new journal of what can be read.")
    _show(f"{form.run}: repaired", experiment.repair_journal(form.run))
    console.print(f"go on with: {experiment.going_on(form.run)}")
    return 0


def _show(title: str, verdict: experiment.Verdict) -> int:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in verdict.facts.items():
        table.add_row(name, value)
    console.print(table)
    for problem in verdict.problems:
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if verdict.problems else 0
