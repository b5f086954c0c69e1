"""What the user sees: progress with queries, rate and time left; tables of figures."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dualstudent import parallel
from dualstudent.errors import Later, Stopped

FOLLOWER = parallel.launched()[0] > 0  # of several ranks the first one speaks
console = Console(highlight=False, soft_wrap=True, quiet=FOLLOWER)
TWICE = 1.0  # seconds in which SIGTERM counts once: timeout(1), for one, sends it to a group and its member
EVERY = 5.0  # seconds between lines where there is no terminal


class _Rate(ProgressColumn):
    """Queries a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


class Bars:
    """Progress bars on a terminal, a line now and then elsewhere; on standard error."""

    def __init__(self, **units: str) -> None:
        """Take the unit of each piece of work that does not count queries, by its name."""
        err = Console(stderr=True, highlight=False)
        self.live = err.is_terminal and not FOLLOWER
        self.units = units
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=err,
        )
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, float] = {}
        self._done: set[str] = set()
        self.began: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> "Bars":
        if self.live:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live:
            self._progress.stop()

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Show how far a piece of work is."""
        now, unit = time.monotonic(), self.units.get(name, "queries")
        began, first = self.began.setdefault(name, (now, done))  # what a resumed run has done is no speed
        if self.live:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(
                    name, total=total, completed=done, note=note, unit=unit
                )
            self._progress.update(self._tasks[name], completed=done, total=total, note=note)
        elif not FOLLOWER and name not in self._done and self._due(name, now, done == total):
            self._said[name] = now
            speed = ""
            if done > first and now > began:
                rate = (done - first) / (now - began)
                speed = f", {rate:,.0f}/s, {(total - done) / rate:.0f} s left"
            text = f"{name}: {done:,}/{total:,} {unit}{speed}  {note}"
            print(text.rstrip(), file=sys.stderr, flush=True)

    def _due(self, name: str, now: float, last: bool) -> bool:
        """Return whether a line is due: now and then, and once at the end."""
        if last:
            self._done.add(name)
        return last or now - self._said.setdefault(name, now) >= EVERY


def following(bars: Bars, budget: int) -> Callable[[int, dict[str, Any]], None]:
    """Return what shows a run: the queries, then the steps of a method that learns on after the last."""

    def follow(spent: int, last: dict[str, Any]) -> None:
        bars.update("extracting", spent, budget, note(last))
        if spent == budget and (last["step"] < last["steps"] or "learning" in bars.began):
            bars.update("learning", last["step"], last["steps"], note(last))

    return follow


def note(last: dict[str, Any]) -> str:
    """Return the last evaluation in a few words."""
    agreement = last.get("agreement")
    return "" if agreement is None else f"agreement {agreement:.3f}"


@contextmanager
def stopping(
    out: Path | None = None, go_on: str = "", when: str = "after this step"
) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a wish to stop, `when` is told; a second one is at once.

    Either way the run in `out`, if one is there, is left with the command that goes on with it, as Stopped;
    and as Later where its target does not answer now.
    """
    asked: list[float] = []

    def wish(number: int, frame: FrameType | None) -> None:
        if asked and (number == signal.SIGINT or time.monotonic() - asked[0] > TWICE):
            raise KeyboardInterrupt
        asked.append(time.monotonic())
        if not FOLLOWER:
            print(f"dualstudent: stopping {when} …", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    except (Stopped, KeyboardInterrupt) as stopped:
        if out is None or not (out / "manifest.json").is_file():
            raise
        raise Stopped(f"{str(stopped) or 'interrupted'}; go on with: {go_on}") from None
    except Later as error:
        if out is None or not (out / "manifest.json").is_file():
            raise
        raise Later(f"{error}; go on with: {go_on}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def result_table(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    """Return the figures of results side by side."""
    table = Table(title="the bill and the copy", title_justify="left")
    table.add_column("")
    for name, _ in rows:
        table.add_column(name, justify="right")
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("method", lambda r: str(r["method"])),
        ("labels", lambda r: str(r["labels"])),
        ("preset", lambda r: str(r["preset"])),
        ("budget", lambda r: f"{r['budget']:,}"),
        ("spent", lambda r: f"{r['spent']:,}"),
        ("unique", lambda r: f"{r['unique']:,}"),
        ("asked again", lambda r: f"{r['bill']['asked_again']:,}"),
        ("audit images", lambda r: f"{r['bill']['audit']:,}"),
        ("of them probes", lambda r: f"{r['bill'].get('probes', 0):,}"),
        *(
            (title, partial(_billed, name))
            for title, name in SERVICE
            if any(r["bill"].get(name) for _, r in rows)
        ),
        ("target accuracy", lambda r: percent(r["target_accuracy"])),
        ("accuracy", lambda r: percent(r["accuracy"])),
        ("each student", lambda r: " ".join(map(percent, r["accuracy_each"] or [])) or "–"),
        ("agreement", lambda r: percent(r["agreement"])),
        ("95 % interval", lambda r: " – ".join(map(percent, r["agreement_ci"] or [])) or "–"),
        ("wall time", lambda r: f"{r['timing']['wall_s']:.1f} s"),
        ("queries/s", lambda r: f"{r['timing']['queries_per_s']:,.0f}"),
    ]
    for title, value in lines:
        table.add_row(title, *(value(result) for _, result in rows))
    return table


SERVICE = (
    ("from the journal", "from_journal"),
    ("requests", "requests"),
    ("failed images", "failed"),
    ("of them broken off", "broken_off"),
    ("transfer images", "transfer"),
    ("price", "price"),
)


def _billed(name: str, result: dict[str, Any]) -> str:
    """Return a figure of the bill that not every run has."""
    value, most = result["bill"].get(name), result["bill"].get(f"{name}_at_most")
    more = "" if most in (None, value) else f" … {most:,}"
    return "–" if value is None else f"{value:,}{more}"


def percent(share: float | None) -> str:
    """Return a share as a percentage, a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"
