"""curves_png(): the agreement over the queries and images that were asked, as one picture."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from dualstudent.files import write_whole, yielding
from dualstudent.report.canvas import COLOURS, PAPER, draw_lines, drawing, share_axis
from dualstudent.report.plots import far_apart, fidelity_lines
from dualstudent.report.reading import Run, Strip, at, number, read_runs, whole
from dualstudent.report.strips import loaded
from dualstudent.report.words import count, cut, percent

NAME = 30  # characters of a name
SHOWN = 3  # runs whose images are shown
IMAGES = {1: 5, 2: 9, 3: 12}  # images of a row, by runs shown
WIDTH, LEFT, GAP, EDGE = 11.0, 5.1, 0.35, 0.12  # inches: all, the curves, between, around
SIGNS = ("●", "■", "◆", "▲")  # as MARKS draws them
HEAD, ROW_GAP, LABEL = 0.34, 0.07, 0.72  # inches: above a run's rows, between them, beside them


def curves_png(runs: Sequence[Path], out: Path) -> None:
    """Write a picture: agreement over queries, images asked at start, middle and end. Raises UserError."""
    known = read_runs(runs)
    blocks = [(i, images) for i, run in enumerate(known) if (images := _rows(run))][:SHOWN]
    blocks = [(i, _cropped(known[i], images, IMAGES[len(blocks)])) for i, images in blocks]
    with drawing(PAPER, "picture"):
        height = max(3.3, sum(_height(images) for _, images in blocks) + 0.15)
        width = WIDTH if blocks else LEFT + 2 * EDGE
        figure = Figure((width, height), dpi=160, facecolor=PAPER.paper)
        axes = figure.add_axes((0.66 / width, 0.52 / height, (LEFT - 0.7) / width, (height - 0.9) / height))
        _curves(axes, known, legend=1 < len(known) != len(blocks))
        top = height - (height - sum(_height(images) for _, images in blocks)) / 2
        if blocks:
            words: dict[str, Any] = {"ha": "right", "fontsize": 8.5, "alpha": 0.8}
            figure.text(
                1 - EDGE / width, (top - 0.21) / height, "images asked after so many queries", **words
            )
        for i, images in blocks:
            _block(figure, top, known[i], i, images)
            top -= _height(images)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    yielding(Path(out), b"\x89PNG", "PNG picture")
    write_whole(Path(out), buffer.getvalue())


def _curves(axes: Axes, runs: Sequence[Run], *, legend: bool) -> None:
    lines = fidelity_lines(runs, accuracy=False)
    axes.set_title("Agreement with the target", loc="left", fontsize=10.5, fontweight="bold")
    share_axis(axes)
    if not lines:
        axes.text(0.5, 0.5, "not measured: no test images", ha="center", transform=axes.transAxes)
        return
    draw_lines(axes, lines, PAPER, log=far_apart(runs))
    spreads = {1 / run.classes for run in runs if run.classes}
    if len(spreads) == 1:
        chance = spreads.pop()
        axes.axhline(chance, color=PAPER.ink, linewidth=1, linestyle=(0, (1, 1.6)))
        axes.annotate("chance", (1, chance), (0, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    if legend:
        box = axes.legend(axes.lines[: len(lines)], ["-"] * len(lines), loc="best", frameon=False)
        for line, text in zip(lines, box.get_texts(), strict=True):
            text.set_text(_name(runs[line.run]))


def _block(figure: Figure, top: float, run: Run, index: int, images: list[tuple[int, Image.Image]]) -> None:
    """Draw the rows of images of one run, below its name."""
    width, height = figure.get_size_inches()
    left = LEFT + GAP
    agreement = run.measured.get("agreement")
    title = f"{SIGNS[index // COLOURS % len(SIGNS)]} {_name(run)}"
    title += "" if number(agreement) is None else f": {percent(agreement)} agreement"
    figure.text(left / width, (top - 0.21) / height, title, color=PAPER.of(index), fontweight="bold")
    top -= HEAD
    for queries, image in images:
        wide, high = _size(image)
        axes = figure.add_axes(((left + LABEL) / width, (top - high) / height, wide / width, high / height))
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        axes.axis("off")
        figure.text(
            (left + LABEL - 0.1) / width,
            (top - high / 2) / height,
            count(queries),
            ha="right",
            va="center",
            fontsize=8.5,
        )
        top -= high + ROW_GAP


def _rows(run: Run) -> list[tuple[int, Image.Image]]:
    """Return images asked at the start, in the middle and at the end of a run."""
    return loaded(_middling(run.strips))


def _middling(strips: Sequence[Strip]) -> list[Strip]:
    if len(strips) < 3:
        return list(strips)
    half = strips[-1].queries / 2
    middle = min(strips[1:-1], key=lambda strip: abs(strip.queries - half))
    return [strips[0], middle, strips[-1]]


def _cropped(run: Run, images: list[tuple[int, Image.Image]], most: int) -> list[tuple[int, Image.Image]]:
    shape = at(run.manifest, "target", "spec", "shape")
    wide = whole(shape[-1]) if isinstance(shape, list) and len(shape) == 3 else None
    if not wide:
        return images
    edge = most * (wide + 1) - 1
    return [(q, image.crop((0, 0, min(image.width, edge), image.height))) for q, image in images]


def _size(image: Image.Image) -> tuple[float, float]:
    wide = WIDTH - LEFT - GAP - LABEL - EDGE
    high = wide * image.height / image.width
    return (wide, high) if high <= 1.0 else (wide / high, 1.0)


def _height(images: list[tuple[int, Image.Image]]) -> float:
    return HEAD + sum(_size(image)[1] + ROW_GAP for _, image in images)


def _name(run: Run) -> str:
    """Return a run's name in signs that the font has: none that it lacks, none that break the line."""
    signs = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    name = "".join(sign if sign.isprintable() and ord(sign) in signs else "?" for sign in run.name)
    return cut(name, NAME)
