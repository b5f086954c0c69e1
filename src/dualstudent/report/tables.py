"""The tables of a page: figures and settings, a column a run."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dualstudent.report.reading import Run, at, number, rows, whole
from dualstudent.report.words import LABELS, NONE, count, duration, figure, interval, percent, shares, volume

FEW = 12  # with more classes than these the worst are listed openly
WORST = 8
ALL = 200  # with more classes than these not all are listed


@dataclass(frozen=True)
class Row:
    """A row of a table: its name and a cell for each run."""

    name: str
    cells: list[str]

    @property
    def differs(self) -> bool:
        """Whether the runs differ in it."""
        return len(set(self.cells)) > 1


@dataclass(frozen=True)
class Group:
    """Rows that belong together."""

    name: str
    rows: list[Row]


@dataclass(frozen=True)
class Classes:
    """Figures by class: the worst of many, listed openly, and all of them, folded away."""

    title: str
    worst: list[dict[str, Any]]
    folded: list[dict[str, Any]]


def bill(run: Run) -> list[tuple[str, str]]:
    """Return what a run cost, as name and value."""
    result, wall = run.result, duration(at(run.result, "timing", "wall_s"))
    sessions = whole(at(result, "timing", "sessions")) or 1
    items = [
        ("Budget", count(run.budget)),
        ("Spent", count(run.spent)),
        ("Unique images", count(result.get("unique"))),
        ("Charged", _unless(count(at(result, "bill", "asked")), count(run.spent))),
        ("Asked again", count(at(result, "bill", "asked_again"))),
        ("Audit images", count(at(result, "bill", "audit"))),
        ("Transfer images", count(at(result, "bill", "transfer") or None)),
        ("Probe images", count(at(result, "bill", "probes") or None)),
        *_service(at(result, "bill")),
        ("Wall time", f"{wall} in {sessions} sessions" if sessions > 1 and wall != NONE else wall),
        ("Queries a second", _rate(at(result, "timing", "queries_per_s"))),
    ]
    return [item for item in items if item[1] != NONE]


def _service(bill: Any) -> list[tuple[str, str]]:
    """Return what a service's answers cost, where a run kept a journal of them."""
    statuses = at(bill, "statuses")
    known = statuses.items() if isinstance(statuses, dict) else ()
    return [
        ("From the journal", count(at(bill, "from_journal"))),
        ("Failed images", count(at(bill, "failed"))),
        ("Broken off", count(at(bill, "broken_off") or None)),
        ("Requests", count(at(bill, "requests"))),
        ("Retried requests", count(at(bill, "retried"))),
        ("Answers by status", ", ".join(f"{_text(code)}: {count(n)}" for code, n in known) or NONE),
        ("Sent", volume(at(bill, "bytes_sent"))),
        ("Received", volume(at(bill, "bytes_received"))),
        ("Waited for answers", duration(at(bill, "waiting_s"))),
        ("Price", _price(at(bill, "price"), at(bill, "price_at_most"))),
    ]


def _price(least: Any, most: Any) -> str:
    """Return a price, or the two between which it lies."""
    ends = [figure(least), figure(most)]
    return " … ".join(ends) if NONE not in ends and ends[0] != ends[1] else ends[0]


def _unless(value: str, other: str) -> str:
    """Return a value where it is not another one that the reader has seen already."""
    return NONE if value == other else value


def figures(runs: Sequence[Run]) -> list[Row]:
    """Return all figures of the runs; those that no run has are left out."""
    results = [{"target_accuracy": run.result.get("target_accuracy")} | run.measured for run in runs]
    bounds = [_bound(run) for run in runs]

    def row(name: str, say: Callable[[Any], str], key: str, source: list[dict[str, Any]] = results) -> Row:
        return Row(name, [say(values.get(key)) for values in source])

    spent = [values.get("queries", run.spent) for run, values in zip(runs, results, strict=True)]
    table = [
        Row("Measured at", [f"{count(queries)} queries" for queries in spent]),
        row("Agreement", percent, "agreement"),
        row("95 % interval", lambda v: f"{interval(v)} %" if interval(v) else NONE, "agreement_ci"),
        row("Agreement, each student", shares, "agreement_each"),
        row("Accuracy", percent, "accuracy"),
        row("Accuracy, each student", shares, "accuracy_each"),
        row("Target accuracy", percent, "target_accuracy"),
        row("Cohen's κ", figure, "kappa"),
        row("ℓ1 of probabilities", figure, "l1"),
        row("KL divergence", lambda v: NONE if figure(v) == NONE else f"{figure(v)} nats", "kl"),
        row("Students' gap", figure, "gap", bounds),
        row("Distance to the target", figure, "error", bounds),
        row("Tightness of the bound", figure, "tightness", bounds),
        row("Bound measured on", _text, "space", bounds),
    ]
    return [row for row in table if set(row.cells) != {NONE}]


def settings(runs: Sequence[Run]) -> list[Group]:
    """Return everything that makes the runs what they are."""
    manifests = [run.manifest for run in runs]
    about = [_about(manifest) for manifest in manifests]
    targets = [_target(manifest) for manifest in manifests]
    groups = [
        Group("Run", _rows(about)),
        Group("Target", _rows(targets)),
        Group("Recipe", _rows([_flat(manifest.get("recipe")) for manifest in manifests])),
        Group("Versions", _rows([_flat(manifest.get("versions")) for manifest in manifests])),
    ]
    return [group for group in groups if group.rows]


def classes(run: Run) -> Classes | None:
    """Return the figures by class."""
    each = [
        {
            "name": _text(row.get("class")),
            "images": count(row.get("images")),
            "agreement": number(row.get("agreement")),
            "accuracy": number(row.get("accuracy")),
        }
        for row in rows(run.result.get("per_class"))
    ]
    if not each:
        return None
    known = [row for row in each if row["agreement"] is not None]
    worst = sorted(known, key=lambda row: row["agreement"] or 0.0)[:WORST] if len(each) > FEW else []
    title = f"The {len(worst)} of {len(each):,} classes with the least agreement"
    return Classes(title, worst, each if len(each) <= ALL else [])


def others(run: Run) -> list[list[str]]:
    """Return the evaluations on other test images that were added to a run later."""
    return [
        [
            f"{_text(e.get('data'))} {_text(e.get('split'))}",
            count(e.get("images")),
            f"{percent(e.get('agreement'))} {interval(e.get('agreement_ci'))}",
            percent(e.get("accuracy")),
            percent(e.get("target_accuracy")),
        ]
        for e in rows(run.result.get("evaluations"))
    ]


def curve(run: Run) -> list[list[str]]:
    """Return the evaluations of a run: queries, agreement, accuracy, gap, distance, tightness."""
    table = [
        [count(point.get("queries"))]
        + [percent(point.get(name)) for name in ("agreement", "accuracy")]
        + [figure(point.get(name)) for name in ("gap", "error", "tightness")]
        for point in run.points
    ]
    return [row for row in table if set(row[1:]) != {NONE}]


def faults(run: Run) -> list[str]:
    """Return what is wrong with the bound that a run recorded."""
    found = _bound(run).get("faults")
    return [_text(fault) for fault in found] if isinstance(found, list) else []


def _bound(run: Run) -> dict[str, Any]:
    bound = run.result.get("bound")
    if isinstance(bound, dict) and (run.complete or not run.points):
        return bound
    known = [point for point in run.points if number(point.get("gap")) is not None]
    return known[-1] if known else {}


def _about(manifest: dict[str, Any]) -> dict[str, str]:
    data, command, labels = manifest.get("data"), manifest.get("command"), manifest.get("labels")
    budgets = manifest.get("budgets")
    words = [str(word) for word in command] if isinstance(command, list) else []
    images = NONE
    if isinstance(data, dict):
        images = f"{count(data.get('images'))} of {_text(data.get('name'))}, {_text(data.get('split'))}"
        images += f" (sha256 {_text(data.get('sha256'))[:16]})"
    return {
        "Method": _text(manifest.get("method")),
        "Preset": _text(manifest.get("preset")),
        "Labels": LABELS.get(str(labels), _text(labels)),
        "Budgets": ", then ".join(count(b) for b in budgets) if isinstance(budgets, list) else NONE,
        "Seed": _text(manifest.get("seed")),
        "Data-free": _text(manifest.get("data_free")),
        "Test images": images,
        "Device": _text(manifest.get("device")),
        "Threads": _text(manifest.get("threads")),
        "Command": shlex.join(words) if words else "none: started from Python",
    }


def _target(manifest: dict[str, Any]) -> dict[str, str]:
    target = manifest.get("target")
    spec = at(target, "spec") if isinstance(at(target, "spec"), dict) else {}
    values = {
        "Name": _text(at(target, "name")),
        "Reference": _text(at(target, "reference")),
        "sha256": _text(at(target, "sha256"))[:16],
        "Image shape": _text(spec.get("shape")),
        "Classes": "unknown to the attacker" if spec.get("classes") is None else _text(spec["classes"]),
        "Input bounds": _text(spec.get("bounds")),
        "Reveals": _text(spec.get("access")),
        "Input levels": _text(spec.get("levels")),
        "Mean": _text(spec.get("mean")),
        "Deviation": _text(spec.get("std")),
    }
    return {name: value for name, value in values.items() if value != NONE}


def _rows(columns: list[dict[str, str]]) -> list[Row]:
    names = dict.fromkeys(name for column in columns for name in column)
    return [Row(name, [column.get(name, NONE) for column in columns]) for name in names]


def _flat(values: Any) -> dict[str, str]:
    return {str(name): _text(value) for name, value in values.items()} if isinstance(values, dict) else {}


def _text(value: Any) -> str:
    """Return any JSON value as a reader wants it."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value) or NONE
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _rate(value: Any) -> str:
    rate = number(value)
    return NONE if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
