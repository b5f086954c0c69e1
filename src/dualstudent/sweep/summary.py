"""What a sweep came to: mean and 95 % interval over seeds, as CSV, Markdown and LaTeX."""

import csv
import io
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from dualstudent.files import read_json
from dualstudent.sweep.matrix import Cell, Sweep

COLUMNS = ("target", "method", "labels", "budget", "n", "spent", "agreement", "accuracy", "state")


@dataclass(frozen=True)
class Figure:
    """A mean over seeds; `half` is half the width of its 95 % interval, None for one seed."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        text = f"{100 * self.mean:.1f}"
        return text if self.half is None else f"{text} ± {100 * self.half:.1f}"


@dataclass(frozen=True)
class Row:
    """A line of the table: all seeds of a target, method, labels and budget."""

    target: str
    method: str
    labels: str
    budget: int
    n: int
    spent: int | None
    agreement: Figure | None
    accuracy: Figure | None
    state: str  # "", "n/a", or how many are missing

    def words(self) -> list[str]:
        """Return its cells as text."""
        spent = "" if self.spent is None else str(self.spent)
        known = [str(figure or "") for figure in (self.agreement, self.accuracy)]
        return [
            self.target,
            self.method,
            self.labels,
            str(self.budget),
            str(self.n),
            spent,
            *known,
            self.state,
        ]


def rows(sweep: Sweep) -> list[Row]:
    """Return the table as it stands: seeds that are not finished are counted as missing."""
    groups: dict[tuple[str, str, str, int], list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault((cell.target.name, cell.row, cell.labels, cell.budget), []).append(cell)
    return [_row(key, members) for key, members in groups.items()]


def _row(key: tuple[str, str, str, int], members: list[Cell]) -> Row:
    if not members[0].possible:
        return Row(*key, 0, None, None, None, "n/a")
    paths = [Path(cell.path) / "result.json" for cell in members]
    results = [result for path in paths if path.is_file() and (result := read_json(path))["complete"]]
    missing = len(members) - len(results)
    return Row(
        *key,
        len(results),
        max((result["spent"] for result in results), default=None),
        over_seeds([r["agreement"] for r in results if r["agreement"] is not None]),
        over_seeds([r["accuracy"] for r in results if r["accuracy"] is not None]),
        f"{missing} of {len(members)} missing" if missing else "",
    )


def over_seeds(values: list[float]) -> Figure | None:
    """Return the mean of some seeds and the 95 % interval of Student's t; None for none."""
    if not values:
        return None
    if len(values) == 1:
        return Figure(values[0], None)
    from scipy.stats import t  # comes with scikit-learn

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Figure(statistics.fmean(values), half)


def write_summary(sweep: Sweep) -> list[Row]:
    """Write summary.csv, summary.md and summary.tex into the sweep's folder; returns the table."""
    table = rows(sweep)
    sweep.out.mkdir(parents=True, exist_ok=True)
    (sweep.out / "summary.csv").write_text(_csv(table))
    (sweep.out / "summary.md").write_text(_markdown(sweep, table))
    (sweep.out / "summary.tex").write_text(_latex(table))
    return table


def _csv(table: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = ("agreement", "accuracy")
    writer.writerow(
        [*COLUMNS[:6], *(f"{n}_{part}" for n in named for part in ("mean", "half_ci95")), "state"]
    )
    for row in table:
        figures = [
            value
            for figure in (row.agreement, row.accuracy)
            for value in (("", "") if figure is None else (figure.mean, figure.half))
        ]
        writer.writerow([*row.words()[:6], *("" if v is None else v for v in figures), row.state])
    return text.getvalue()


def _markdown(sweep: Sweep, table: list[Row]) -> str:
    lines = [f"# {sweep.name}", "", "Percent; mean and 95 % interval (Student's t) over n seeds.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(word.replace("|", "\\|") for word in row.words()) + " |" for row in table]
    return "\n".join(lines) + "\n"


def _latex(table: list[Row]) -> str:
    signs = {"\\": r"\textbackslash{}", "±": r"$\pm$", **{c: f"\\{c}" for c in "&%$#_{}"}}
    signs |= {"^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}

    def escaped(text: str) -> str:
        return "".join(signs.get(c, c) for c in text)

    lines = [r"\begin{tabular}{lllrrrrrl}", r"\hline", " & ".join(COLUMNS) + r" \\", r"\hline"]
    lines += [" & ".join(map(escaped, row.words())) + r" \\" for row in table]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"
