"""Run directories as a report needs them: strict about JSON and schema, lenient about what is missing."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from dualstudent.errors import UserError
from dualstudent.files import closed, read_json

SCHEMA_VERSION = 1
HUGE = 1e18  # no figure of a run is larger: beyond it a value counts as missing
STRIP = re.compile(r"asked-(\d{1,18})\.png")


@dataclass(frozen=True)
class Strip:
    """A picture with a row of images, and the queries spent when they were asked."""

    queries: int
    path: Path


@dataclass(frozen=True)
class Run:
    """What the files of one run say; `result` is empty until the run has written one."""

    name: str
    manifest: dict[str, Any]
    result: dict[str, Any]
    points: tuple[dict[str, Any], ...]  # evaluations, in order
    steps: tuple[dict[str, Any], ...]
    strips: tuple[Strip, ...]

    @property
    def budget(self) -> int:
        """Queries that the run may spend by now."""
        budgets = self.manifest.get("budgets")
        last = whole(budgets[-1]) if isinstance(budgets, list) and budgets else None
        return whole(self.result.get("budget")) or 0 if last is None else last

    @property
    def current(self) -> bool:
        """Whether the result is that of the present budget, not of one before an extension."""
        return whole(self.result.get("budget")) == self.budget

    @property
    def complete(self) -> bool:
        """Whether the run has finished its present budget."""
        return self.current and self.result.get("complete") is True

    @property
    def spent(self) -> int:
        """Queries spent, as far as the files know."""
        seen = [line["queries"] for line in (*self.points[-1:], *self.steps[-1:])]
        return int(max([whole(self.result.get("spent")) or 0, *([] if self.complete else seen)]))

    @property
    def labels(self) -> str:
        """How the target answered: "soft", "hard" or what the manifest holds instead."""
        return str(self.manifest.get("labels"))

    @property
    def classes(self) -> int | None:
        """The target's number of classes; None where the attacker does not know it."""
        known = whole(at(self.manifest, "target", "spec", "classes"))
        return known if known is not None and known > 0 else None

    @property
    def measured(self) -> dict[str, Any]:
        """The figures on test images: of the result, or of the last evaluation of an unfinished run."""
        if self.complete or not self.points:
            return self.result
        known = [point for point in self.points if number(point.get("agreement")) is not None]
        return known[-1] if known else {}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run directories and give each a name of its own. Raises UserError."""
    if not paths:
        raise UserError("a report needs at least one run directory")
    runs = [_read(Path(path)) for path in paths]
    whole_paths = [Path(os.path.abspath(path)).parts for path in paths]
    for parts in (1, 2):
        names = [_name(Path(path), parts) for path in paths]
        if len(set(names)) == len(set(whole_paths)):
            break
    else:
        names = _told_apart(whole_paths)
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        runs[i] = replace(runs[i], name=name if seen[name] == 1 else f"{name} ({seen[name]})")
    return runs


def at(values: Any, *names: str) -> Any:
    """Return a value deep inside of objects, None where one of them is missing."""
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def number(value: Any) -> float | None:
    """Return a finite number as a float, None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= HUGE and math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """Return a whole number that is not negative, None for everything else."""
    exact = number(value)
    return int(exact) if exact is not None and exact >= 0 and exact == int(exact) else None


def rows(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list; nothing where there is no list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _read(path: Path) -> Run:
    if not (path / "manifest.json").is_file():
        raise UserError(f"{path} holds no run: there is no manifest.json in it")
    closed(path)  # a page may be shown to others: it holds nothing from outside of the run
    manifest = _versioned(path / "manifest.json")
    result = _versioned(path / "result.json") if (path / "result.json").exists() else {}
    lines = _lines(path / "metrics.jsonl")
    points = [line for line in lines if line.get("event") == "evaluation"]
    return Run(
        name="",
        manifest=manifest,
        result=result,
        points=tuple(points or [p for p in rows(result.get("curve")) if whole(p.get("queries")) is not None]),
        steps=tuple(line for line in lines if line.get("event") == "step"),
        strips=_strips(path / "figures"),
    )


def _versioned(path: Path) -> dict[str, Any]:
    values = read_json(path)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {str(version)[:40]}, this program reads {SCHEMA_VERSION}")
    return values


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; a torn last line, as a killed run leaves it, is dropped."""
    try:
        whole_lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    lines = []
    for i, raw in enumerate(whole_lines, 1):
        try:
            line = json.loads(raw) if raw.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged in line {i}: {error}") from error
        if isinstance(line, dict) and whole(line.get("queries")) is not None:
            lines.append(line)
    return lines


def _strips(folder: Path) -> tuple[Strip, ...]:
    try:
        names = [(STRIP.fullmatch(path.name), path) for path in folder.iterdir()]
    except OSError:
        return ()
    found = [Strip(int(match[1]), path) for match, path in names if match]
    return tuple(sorted(found, key=lambda strip: (strip.queries, strip.path.name)))


def _told_apart(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Return paths without what all of them begin and end with: those of a sweep differ in the middle."""
    first = _alike(paths)
    last = _alike([path[first:][::-1] for path in paths])
    return ["/".join(path[first : len(path) - last]) or path[-1] for path in paths]


def _alike(paths: Sequence[tuple[str, ...]]) -> int:
    """Return how many parts all paths begin with."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))


def _name(path: Path, parts: int) -> str:
    return "/".join(Path(os.path.abspath(path)).parts[-parts:]).lstrip("/") or "run"
