"""Matplotlib without a screen: reproducible figures, and SVG that takes the page's colours."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dualstudent.report.words import short

COLOURS = 8  # then they repeat with another mark
MARKS = ("o", "s", "D", "^")


@dataclass(frozen=True)
class Palette:
    """Colours of a figure: one for each run, text and grid."""

    series: tuple[str, ...]
    ink: str
    grid: str
    paper: str

    def of(self, run: int) -> str:
        """Return the colour of a run."""
        return self.series[run % len(self.series)]


# Colours that stand for the page's own: `svg` replaces each by the style that follows light or dark.
PAGE = Palette(tuple(f"#5e01{i:02x}" for i in range(COLOURS)), "#5e0200", "#5e0300", "#5e0400")
STYLES = {
    **{colour: f"var(--run{i})" for i, colour in enumerate(PAGE.series)},
    PAGE.ink: "currentColor",
    PAGE.grid: "var(--grid)",
    PAGE.paper: "var(--card)",
}
PAPER = Palette(
    ("#1d5fd0", "#c2410c", "#0f766e", "#7e22ce", "#be185d", "#4d7c0f", "#8a5a00", "#475569"),
    "#23272f",
    "#d9dce2",
    "#ffffff",
)


@contextmanager
def drawing(palette: Palette, salt: str = "") -> Iterator[None]:
    """Draw the same on every machine: whatever the user's own matplotlib settings say."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": f"dualstudent {salt}",
                "svg.fonttype": "none",
                "text.parse_math": False,
                "font.family": "DejaVu Sans",
                "font.size": 9,
                "axes.edgecolor": palette.grid,
                "axes.labelcolor": palette.ink,
                "axes.facecolor": "none",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": palette.grid,
                "grid.linewidth": 0.6,
                "text.color": palette.ink,
                "xtick.color": palette.grid,
                "ytick.color": palette.grid,
                "xtick.labelcolor": palette.ink,
                "ytick.labelcolor": palette.ink,
                "lines.linewidth": 1.8,
                "lines.markersize": 3.5,
                "lines.solid_capstyle": "round",
            }
        )
        yield


def svg(figure: Figure, name: str) -> Markup:
    """Return a figure as inline SVG: no references to anything outside, ids of its own."""
    buffer = io.StringIO()
    about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=about)
    text = buffer.getvalue()
    text = re.sub(
        r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->",
        "",
        text[text.index("<svg") :],
        flags=re.DOTALL,
    )
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    for colour, style in STYLES.items():
        text = text.replace(colour, style)
    return Markup(text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1))


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    run: int
    queries: Sequence[float]
    values: Sequence[float]
    dashed: bool = False
    marked: bool = True


def draw_lines(axes: Axes, lines: Sequence[Line], palette: Palette, *, log: bool) -> None:
    """Draw values over queries; on a logarithmic axis where `log`."""
    for line in lines:
        marked = line.marked and not line.dashed and len(line.queries) <= 60
        axes.plot(
            line.queries,
            line.values,
            color=palette.of(line.run),
            linestyle=(0, (3.5, 2.5)) if line.dashed else "-",
            linewidth=1.3 if line.dashed else None,
            marker=MARKS[line.run // COLOURS % len(MARKS)] if marked or len(line.queries) == 1 else None,
            markerfacecolor=palette.paper if line.dashed else None,
        )
    queries_axis(axes, [q for line in lines for q in line.queries], log=log)


def queries_axis(axes: Axes, queries: Sequence[float], *, log: bool) -> None:
    """Let the x-axis count queries."""
    low, high = min(queries), max(queries)
    if log and low > 0:
        axes.set_xscale("log")
        decade = high >= 10 * low
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0,) if high > 200 * low else (1.0, 3.0)))
        if not decade:
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
        axes.set_xlim(low / 1.15, high * 1.15)
    else:
        axes.set_xlim(0, high * 1.03 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("queries")
    axes.grid(False, axis="x")


def share_axis(axes: Axes, top: float = 1.0) -> None:
    """Let the y-axis count per cent."""
    axes.set_ylim(0, top * 1.03)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


def value_axis(axes: Axes, values: Sequence[float]) -> None:
    """Let the y-axis show magnitudes: logarithmic where they are positive and far apart."""
    low, high = min(values), max(values)
    if low > 0 and high > 20 * low:
        axes.set_yscale("log")
        wide = high > 300 * low
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0,) if wide else (1.0, 3.0)))
        axes.set_ylim(low / 1.2, high * 1.2)
    else:
        axes.set_ylim(min(0.0, low), high * 1.06 if high > 0 else 1)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
