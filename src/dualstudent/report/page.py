"""render(): run directories to one self-contained HTML page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from dualstudent.files import write_text, yielding
from dualstudent.report import plots, strips, tables, words
from dualstudent.report.canvas import COLOURS
from dualstudent.report.reading import Run, number, read_runs, rows

TITLE = "Model extraction report"
LONGEST = 3000  # characters of a text from a file that a page shows
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


@dataclass(frozen=True)
class Picture:
    """A row of asked images on the page."""

    queries: int
    uri: Markup
    width: int


@dataclass(frozen=True)
class View:
    """All that a page shows of one run."""

    run: Run
    colour: str  # CSS classes of its colour, and of its mark
    mark: str
    tags: list[str]
    headline: str
    unfinished: str
    older: str
    agreement: str
    interval: str
    flags: list[dict[str, Any]]
    bill: list[tuple[str, str]]
    faults: list[str]
    pictures: list[Picture]
    charts: list[plots.Plot]
    classes: tables.Classes | None
    others: list[list[str]]
    curve: list[list[str]]

    @property
    def failed(self) -> int:
        """Number of checks that are not ok."""
        return sum(not flag["ok"] for flag in self.flags)


def render(runs: Sequence[Path], out: Path, *, title: str = TITLE) -> None:
    """Write one HTML page about run directories that needs nothing but itself. Raises UserError."""
    out = Path(out)
    known = read_runs(runs)
    yielding(out, b"<!doctype html", "HTML page")
    views = [_view(run, i) for i, run in enumerate(known)]
    curves = [plots.fidelity(known), plots.tightness(known), *plots.losses(known)]
    page = _environment().get_template("page.html.j2")
    text = page.render(
        title=title,
        views=views,
        failed=sum(view.failed for view in views),
        curves=[plot for plot in curves if plot is not None],
        table=tables.figures(known),
        settings=tables.settings(known),
        meanings=words.MEANINGS,
        version=_version(),
    )
    write_text(out, text)


def _view(run: Run, index: int) -> View:
    charts = [plots.classwise(run, index), plots.answers(run, index)]
    flags = [
        {"name": flag.get("name", ""), "ok": flag.get("ok") is True, "text": flag.get("text", "")}
        for flag in rows(run.result.get("flags"))
    ]
    agreement = number(run.measured.get("agreement"))
    return View(
        run=run,
        colour=f"c{index % COLOURS}",
        mark=f"mark c{index % COLOURS} m{index // COLOURS % 4}",
        tags=words.tags(run),
        headline=words.headline(run),
        unfinished=words.unfinished(run),
        older=words.older(run),
        agreement="" if agreement is None else words.percent(agreement),
        interval=words.interval(run.measured.get("agreement_ci")),
        flags=sorted(flags, key=lambda flag: bool(flag["ok"])),
        bill=tables.bill(run),
        faults=[f for f in tables.faults(run) if not any(f in str(flag["text"]) for flag in flags)],
        pictures=_pictures(run),
        charts=[chart for chart in charts if chart is not None],
        classes=tables.classes(run),
        others=tables.others(run),
        curve=tables.curve(run),
    )


def _pictures(run: Run) -> list[Picture]:
    found = strips.loaded(strips.spread(run.strips, 8))
    return [Picture(queries, *strips.inline(picture)) for queries, picture in found]


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        finalize=_seen,
        loader=FunctionLoader(_source),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"count": words.count, "cut": words.cut, "percent": words.percent}
    return environment


def _source(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _seen(value: Any) -> Any:
    """Make a value from a file fit to be seen: no endless text, no signs that hide or turn others."""
    if isinstance(value, Markup):
        return value
    return UNSEEN.sub("\ufffd", words.cut(value, LONGEST))


def _version() -> str:
    try:
        return version("dualstudent")
    except PackageNotFoundError:
        return ""
