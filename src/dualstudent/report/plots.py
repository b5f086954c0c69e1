"""The plots of a page: what each shows, drawn as SVG, with its words for those who cannot see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dualstudent.report.canvas import (
    PAGE,
    Line,
    draw_lines,
    drawing,
    share_axis,
    svg,
    value_axis,
)
from dualstudent.report.reading import Run, number, rows, whole
from dualstudent.report.words import count, figure, percent

SIZE = (4.5, 2.6)  # inches of 72 px: text stays legible on a screen of 400 px
BARS = 60  # more classes than these are drawn sorted, as one outline
POINTS = 300  # points of a line from the log of all steps; more are averaged


@dataclass(frozen=True)
class Plot:
    """A plot with its caption and its description."""

    title: str
    caption: str
    alt: str
    svg: Markup


def far_apart(runs: Sequence[Run]) -> bool:
    """Return whether the runs' budgets differ so much that only a logarithmic axis shows all."""
    budgets = [run.budget for run in runs if run.budget]
    return bool(budgets) and max(budgets) > 3 * min(budgets)


def series(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return (queries, values) of the lines that hold a number of that name."""
    known = [(float(line["queries"]), number(line.get(name))) for line in lines]
    kept = [(queries, value) for queries, value in known if value is not None]
    return [queries for queries, _ in kept], [value for _, value in kept]


def fidelity_lines(runs: Sequence[Run], *, accuracy: bool = True) -> list[Line]:
    """Return the lines of agreement (solid) and accuracy (dashed) of all runs that measured them."""
    lines = []
    for i, run in enumerate(runs):
        for name, dashed in (("accuracy", True), ("agreement", False))[0 if accuracy else 1 :]:
            queries, values = series(run.points, name)
            if queries:
                lines.append(Line(i + (dashed and len(runs) == 1), queries, values, dashed))
    return lines


def fidelity(runs: Sequence[Run]) -> Plot | None:
    """Plot agreement and accuracy over queries, and what the target itself reaches."""
    lines = fidelity_lines(runs)
    if not lines:
        return None
    caption = "Solid lines: agreement with the target, its 95 % interval at the end. Dashed: accuracy."
    ceilings = {number(run.result.get("target_accuracy")) for run in runs} - {None}
    with drawing(PAGE, "fidelity"):
        picture = Figure(SIZE, layout="constrained")
        axes = picture.subplots()
        draw_lines(axes, lines, PAGE, log=far_apart(runs))
        for i, run in enumerate(runs):
            ends = run.result.get("agreement_ci") if run.complete and run.points else None
            known = [end for end in ends if number(end) is not None] if isinstance(ends, list) else []
            if len(known) == 2:
                axes.plot([run.spent] * 2, known, color=PAGE.of(i), linewidth=5, alpha=0.35)
        if len(ceilings) == 1:
            ceiling = ceilings.pop() or 0.0
            axes.axhline(ceiling, color=PAGE.ink, linewidth=0.9, linestyle=(0, (1, 2)))
            caption += f" Dotted: accuracy of the target, {percent(ceiling)}."
        share_axis(axes)
        told = _told(runs, [line for line in lines if not line.dashed], "agreement", percent)
        return Plot("Agreement and accuracy", caption, told, svg(picture, "fidelity"))


def tightness(runs: Sequence[Run]) -> Plot | None:
    """Plot the tightness of the bound over queries."""
    lines = [Line(i, *known) for i, run in enumerate(runs) if (known := series(run.points, "tightness"))[0]]
    if not lines:
        return None
    with drawing(PAGE, "tightness"):
        picture = Figure(SIZE, layout="constrained")
        axes = picture.subplots()
        draw_lines(axes, lines, PAGE, log=far_apart(runs))
        top = max([1.0, *(value for line in lines for value in line.values)])
        axes.axhline(1, color=PAGE.ink, linewidth=0.9, linestyle=(0, (1, 2)))
        value_axis(axes, [0.0, top])
        return Plot(
            "Tightness of the bound",
            "‖S1 − S2‖ / (‖S1 − T‖ + ‖S2 − T‖): never above 1, the dotted line.",
            _told(runs, lines, "tightness", figure),
            svg(picture, "tightness"),
        )


def losses(runs: Sequence[Run]) -> list[Plot]:
    """Plot the students' gap on generated images and their loss on the answers, of every step."""
    about = (
        ("gap", "Students' gap on generated images", "What the generator raises; no query is needed for it."),
        ("loss", "Student loss on the answers", "What the students lower."),
    )
    plots = []
    for name, title, caption in about:
        lines, most = [], 1
        for i, run in enumerate(runs):
            queries, values, each = thinned(*series(run.steps, name))
            if queries:
                lines.append(Line(i, queries, values, marked=False))
                most = max(most, each)
        if not lines:
            continue
        if name == "loss" and len({run.labels for run in runs}) > 1:
            caption += " Soft and hard labels have different losses: compare them within one kind only."
        if any(line.queries[-2:-1] == line.queries[-1:] for line in lines):
            caption += " Above the last query: what is learnt after it."
        if most > 1:
            caption += f" Means of up to {most:,} steps."
        with drawing(PAGE, name):
            picture = Figure(SIZE, layout="constrained")
            axes = picture.subplots()
            draw_lines(axes, lines, PAGE, log=far_apart(runs))
            value_axis(axes, [value for line in lines for value in line.values])
            plots.append(Plot(title, caption, _told(runs, lines, name, figure), svg(picture, name)))
    return plots


def thinned(queries: list[float], values: list[float]) -> tuple[list[float], list[float], int]:
    """Return at most POINTS points, means of equally many neighbours, and how many each holds."""
    each = -(-len(queries) // POINTS) or 1
    groups = range(0, len(queries), each)
    means = [sum(part) / len(part) for part in (values[g : g + each] for g in groups)]
    return [queries[g : g + each][-1] for g in groups], means, each


def answers(run: Run, index: int) -> Plot | None:
    """Plot how often the target named each class over all queries."""
    histogram = run.result.get("histogram")
    if not isinstance(histogram, dict):
        return None
    counts = {int(k): n for k, v in histogram.items() if k.isdecimal() and len(k) < 7 and (n := whole(v))}
    total = sum(counts.values())
    if not total:
        return None
    classes = run.classes
    if classes is None:
        caption = f"The attacker does not know how many classes there are; {len(counts)} were answered."
    else:
        caption = f"Dotted: an even spread, {_fine(1 / classes)} each."
        never = classes - len(counts)
        caption += f" {never} of {classes} classes were never answered." if never > 0 else ""
    top = max(counts, key=lambda label: counts[label])
    most = f"class {top} most often, {percent(counts[top] / total)}"
    alt = f"Answers of the target over {count(total)} queries: {most}."
    shares = {label: n / total for label, n in counts.items()}
    chance = None if classes is None else 1 / classes
    return Plot("Answers by class", caption, alt, _bars(shares, classes, index, chance, f"answers{index}"))


def classwise(run: Run, index: int) -> Plot | None:
    """Plot the agreement on the test images of each class."""
    each = [number(row.get("agreement")) for row in rows(run.result.get("per_class"))]
    known = {label: value for label, value in enumerate(each) if value is not None}
    if not known:
        return None
    overall = number(run.result.get("agreement"))
    caption = "" if overall is None else f"Dotted: all test images, {percent(overall)}."
    if len(known) < len(each):
        caption += f" {len(each) - len(known)} of {len(each)} classes have no test images."
    low, high = min(known.values()), max(known.values())
    alt = f"Agreement by class: from {percent(low)} to {percent(high)} over {len(known)} classes."
    picture = _bars(known, len(each), index, overall, f"classes{index}", top=1.0)
    return Plot("Agreement by class", caption.strip(), alt, picture)


def _bars(
    shares: dict[int, float],
    classes: int | None,
    colour: int,
    level: float | None,
    name: str,
    top: float = 0.0,
) -> Markup:
    """Draw one bar a class; where there are many, an outline of them sorted."""
    with drawing(PAGE, name):
        picture = Figure(SIZE, layout="constrained")
        axes = picture.subplots()
        many = max(len(shares), classes or 0) > BARS
        if many:
            values = sorted(shares.values(), reverse=True)
            edges = [i + 0.5 for i in range(len(values) + 1)]
            axes.stairs(values, edges, fill=True, color=PAGE.of(colour), alpha=0.8)
            axes.set_xlim(0.5, max(len(values), classes or 0) + 0.5)
            axes.set_xlabel("classes, the largest share first")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        else:
            at_ = sorted(shares) if classes is None else range(max(classes, max(shares) + 1))
            axes.bar(
                range(len(at_)), [shares.get(k, 0) for k in at_], 0.75, color=PAGE.of(colour), alpha=0.85
            )
            names = [str(k) for k in at_]
            axes.set_xlim(-0.6, len(at_) - 0.4)
            axes.xaxis.set_major_formatter(
                FuncFormatter(lambda x, _: names[int(x)] if 0 <= x < len(names) and x == int(x) else "")
            )
            axes.set_xlabel("class")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        share_axis(axes, top or max([*shares.values(), level or 0, 1e-9]))
        if level is not None:
            axes.axhline(level, color=PAGE.ink, linewidth=1.1, linestyle=(0, (1, 1.6)))
        axes.grid(False, axis="x")
        return svg(picture, name)


def _fine(share: float) -> str:
    return f"{100 * share:.3g} %"


def _told(runs: Sequence[Run], lines: Sequence[Line], name: str, say: Any) -> str:
    """Describe the first and the last point of each line."""
    parts = [
        f"{runs[line.run].name}: {say(line.values[0])} at {count(line.queries[0])} queries,"
        f" {say(line.values[-1])} at {count(line.queries[-1])}"
        for line in lines
    ]
    return f"{name} over queries. " + "; ".join(parts) + "."
