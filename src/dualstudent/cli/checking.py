"""What `dualstudent target check` and `dualstudent plan` show, and the file between them."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from dualstudent import experiment, targets
from dualstudent.cli.forms import CheckForm
from dualstudent.cli.show import console, percent
from dualstudent.data import Images, load_data
from dualstudent.errors import UserError
from dualstudent.experiment import Estimate
from dualstudent.files import read_json, write_json
from dualstudent.ledger import Account
from dualstudent.targets import Findings, Opened, Pace

SCHEMA_VERSION = 1
KIND = "dualstudent check"  # what tells the file from others
FEW = 12  # answers listed


def check(form: CheckForm) -> int:
    """Ask a target a few images and say what was found. Raises UserError."""
    price_of(form.price)
    device = experiment.choose_device(form.machine.device)
    opened = targets.open_target(form.target, form.options, device=device)
    data = None if form.data is None else load_data(form.data, form.split, folder=form.data_dir)
    found = targets.check_target(opened.target, Account("audit"), data, images=form.images)
    values = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        **_identity(opened),
        "name": opened.name,
        **found.to_json(),
        "price": form.price,
        "queries": form.queries,
        "seconds": None if form.queries is None else found.pace.seconds(form.queries),
        "cost": None if form.queries is None else _cost(form.price, form.queries),
    }
    if form.out is not None:
        write_json(form.out, values)
    if form.json:
        json.dump(values, sys.stdout, indent=2)
        print()
        return 0
    _show(opened, found, form)
    return 0


def _show(opened: Opened, found: Findings, form: CheckForm) -> None:
    table = Table(title=opened.name, title_justify="left", show_header=False)
    for name, value in found.spec.items():
        table.add_row("range" if name == "bounds" else name, _words(value))
    for name, total in opened.files.items():
        table.add_row(f"sha256 of {name}", total)
    table.add_row("mode", found.mode)
    table.add_row("answers", ", ".join(f"class {c} ({p:.2f})" for c, p in found.answers[:FEW]))
    table.add_row("latency of one image", f"{found.latency_ms:.2f} ms")
    speed = f"{found.pace.images_per_second:,.0f}/s, {found.pace.batch} at once"
    table.add_row("images", speed)
    if form.queries is not None:
        table.add_row(f"{form.queries:,} queries", _time(found.pace.seconds(form.queries)) + ", its own time")
    if form.price is not None:
        table.add_row("price of 1,000 images", f"{form.price:g}")
    if form.price is not None and form.queries is not None:
        table.add_row(f"price of {form.queries:,} queries", f"{_cost(form.price, form.queries):,.2f}")
    if found.accuracy is not None:
        table.add_row("accuracy", percent(found.accuracy))
    table.add_row("images shown (audit)", f"{found.images:,}")
    console.print(table)
    for warning in found.warnings:
        console.print(f"look: {warning}")
    if form.out is not None:
        console.print(f"{form.out}: for 'dualstudent plan … --check {form.out}'")


def read_check(path: Path | None, opened: Opened) -> tuple[Pace | None, float | None]:
    """Return pace and price that a check of the same target found. Raises UserError for another's."""
    if path is None:
        return None, None
    values = read_json(path)
    if values.get("kind") != KIND or values.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} is no file of 'dualstudent target check --out' that this version reads")
    now = _identity(opened) | {"spec": opened.target.spec.to_json()}
    for name, value in json.loads(json.dumps(now)).items():
        if values.get(name) != value:
            raise UserError(
                f"{path} is of another target ({name} differs): check this one with"
                f" 'dualstudent target check … --out {path}'"
            )
    try:
        return Pace.from_json(values.get("pace")), price_of(values.get("price"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def show_plan(
    method: str, opened: Opened, found: Estimate, data: Images | None, price: float | None, device: str
) -> None:
    """Print phases, times and price of a planned run."""
    table = Table(title=f"plan: {method} on {opened.name}", title_justify="left")
    for column in ("phase", "steps", "queries a step", "queries"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name, steps, cost in found.phases:
        table.add_row(name, f"{steps:,}", f"{cost:,}", f"{steps * cost:,}")
    table.add_row("all", f"{sum(s for _, s, _ in found.phases):,}", "", f"{found.queries:,}")
    console.print(table)
    target = "" if found.target_seconds is None else f" and the target's own {_time(found.target_seconds)}"
    console.print(
        f"estimated time {found.seconds:.0f} s{target} on {device} with {torch.get_num_threads()} threads,"
        f" {'evaluations not' if data is None else f'evaluations on {len(data):,} images'} included;"
        " the target was not asked"
    )
    if not found.whole and found.target_seconds is None:
        console.print(
            "the target's own time comes on top: 'dualstudent target check … --out check.json' measures it"
            " for 'plan … --check check.json'"
        )
    if price is not None:
        audit = (
            "" if data is None else f", {_cost(price, len(data)):,.2f} for {len(data):,} test images (audit)"
        )
        console.print(
            f"estimated price {_cost(price, found.queries):,.2f} for {found.queries:,} queries"
            f" at {price:g} for 1,000{audit}"
        )


def price_of(value: Any) -> float | None:
    """Return a price of 1,000 images. Raises UserError for what is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"--price {value}: a number of 0 or more, for 1,000 images")
    return float(value)


def _identity(opened: Opened) -> dict[str, Any]:
    """Return what tells a target from others, wherever it lies."""
    if opened.files or opened.sha256 is not None:
        return {"sha256": opened.sha256, "files": sorted(opened.files.values())}
    return {"reference": opened.reference}


def _cost(price: float | None, images: int) -> float:
    return (price or 0.0) * images / 1000


def _time(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _words(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(f"{v:g}" for v in value)
    return "–" if value is None else str(value)
