"""What `dualstudent sweep` shows."""

import sys
from collections import Counter

from rich.table import Table

from dualstudent import sweep as sweeps
from dualstudent.cli.forms import SweepForm
from dualstudent.cli.show import console, stopping
from dualstudent.errors import Stopped
from dualstudent.sweep.summary import COLUMNS
from dualstudent.sweep.work import parse_slurm


def run_sweep(form: SweepForm) -> int:
    """Do a sweep's cells and print its table; returns 1 if any failed. Raises UserError, Stopped."""
    sweep = sweeps.read_sweep(form.spec)
    slurm = None if form.slurm is None else parse_slurm(form.slurm)
    states = {cell.name: sweeps.state(cell) for cell in sweep.cells}
    if form.dry_run:
        for name, state in states.items():
            console.print(f"{state:<8}{name}")
        console.print(", ".join(f"{count} {state}" for state, count in Counter(states.values()).items()))
        return 0

    def tell(cell: str, news: str) -> None:
        print(f"{cell}: {news}", file=sys.stderr, flush=True)

    with stopping(when="cells, which go on from their last snapshots") as stop:
        outcome = sweeps.start(
            sweep,
            jobs=form.jobs,
            slurm=slurm,
            tell=tell,
            finished=lambda: sweeps.write_summary(sweep),
            stop=stop,
        )
    table = Table(title=sweep.name, title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    for row in sweeps.write_summary(sweep):
        table.add_row(*row.words())
    console.print(table)
    console.print(f"summary: {sweep.out}/summary.csv, .md, .tex")
    for name, log in outcome.failed.items():
        print(f"failed: {name}: see {log}", file=sys.stderr)
    if outcome.stopped:
        raise Stopped(f"sweep stopped; go on with: dualstudent sweep {form.spec}")
    return 1 if outcome.failed else 0
