"""result.json: what came out, the flags that doubt it, and the bill."""

import math
from typing import Any

from dualstudent.experiment.folder import SCHEMA_VERSION, RunFolder
from dualstudent.experiment.paying import bill
from dualstudent.experiment.recorder import Recorder, read_curve, renewals
from dualstudent.journal import Journal
from dualstudent.ledger import Account, Shown
from dualstudent.methods.monitor import COLLAPSE, RENEWED

LEVELS = (0.75, 0.80, 0.85, 0.90)  # of accuracy and agreement, whose price in queries is told
EMPTY: dict[str, Any] = {
    "target_accuracy": None,
    "accuracy": None,
    "accuracy_each": None,
    "agreement": None,
    "agreement_ci": None,
    "agreement_each": None,
    "kappa": None,
    "per_class": [],
    "l1": None,
    "kl": None,
}


def compose(
    run: RunFolder,
    manifest: dict[str, Any],
    attack: Account,
    shown: Shown,
    recorder: Recorder,
    *,
    planned: int,
    figures: dict[str, Any] | None,
    journal: Journal | None = None,
    probes: int = 0,
) -> dict[str, Any]:
    """Return result.json. All but `timing` and `bill` depends on recipe, seed and target alone."""
    curve = read_curve(run)
    histogram = shown.histogram()
    return {
        "schema_version": SCHEMA_VERSION,
        "method": manifest["method"],
        "preset": manifest["preset"],
        "labels": manifest["labels"],
        "seed": manifest["seed"],
        "budget": manifest["budgets"][-1],
        "spent": attack.spent,
        "unique": shown.unique,
        "extended_from": manifest["budgets"][:-1],
        **(EMPTY if figures is None else figures),
        "curve": [{name: v for name, v in point.items() if name != "space"} for point in curve],
        "reached": {name: reached(curve, name) for name in ("agreement", "accuracy")},
        "bound": _bound(curve),
        "histogram": {str(label): count for label, count in histogram.items()},
        "balance": balance(histogram, manifest["target"]["spec"]["classes"]),
        "complete": attack.spent == planned,
        "flags": _flags(manifest, attack.spent, planned, curve, histogram, renewals(run)),
        "timing": {
            "wall_s": round(recorder.wall, 3),
            "queries_per_s": round(attack.spent / max(recorder.wall, 1e-9), 1),
            "sessions": recorder.sessions,
        },
        "bill": bill(run, manifest, attack, shown.unique, journal) | {"probes": probes},
    }


def reached(curve: list[dict[str, Any]], name: str) -> dict[str, float | None]:
    """Return the queries at which a curve first reaches each of LEVELS, interpolated; None: not reached.

    At the first point already: that point's own queries.
    """
    found: dict[str, float | None] = {}
    points = [(point["queries"], point[name]) for point in curve if point.get(name) is not None]
    for level in LEVELS:
        after = next((i for i, (_, value) in enumerate(points) if value >= level), None)
        queries: float | None = None
        if after is not None:
            (x1, y1), (x0, y0) = points[after], points[max(0, after - 1)]
            queries = round(x0 + (x1 - x0) * (level - y0) / (y1 - y0), 1) if after else float(x1)
        found[f"{level:.2f}"] = queries
    return found


def balance(histogram: dict[int, int], classes: int | None) -> float | None:
    """Return the entropy of the answered classes over its greatest value: 1 for all alike, 0 for one.

    None where the number of classes is unknown, or nothing was answered.
    """
    total = sum(histogram.values())
    if not total or classes is None:
        return None
    shares = [count / total for count in histogram.values()]
    return -sum(share * math.log(share) for share in shares) / math.log(classes)


def _bound(curve: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the last recorded bound, with the faults of all evaluations."""
    known = [point for point in curve if "tightness" in point]
    if not known:
        return None
    faults = [fault for point in known for fault in point["faults"]]
    last = {name: known[-1][name] for name in ("space", "gap", "error", "tightness")}
    return last | {"faults": list(dict.fromkeys(faults))}


def _flags(
    manifest: dict[str, Any],
    spent: int,
    planned: int,
    curve: list[dict[str, Any]],
    histogram: dict[int, int],
    renewed: int,
) -> list[dict[str, Any]]:
    """Return what a reader should check before he believes the figures."""
    limits = _bound(curve)
    faults = limits["faults"] if limits else []
    top = max(histogram.values(), default=0) / max(1, sum(histogram.values()))
    soft = "probabilities" if manifest["labels"] == "soft" else "top class only"
    flags = [
        ("budget", spent == planned, f"{spent:,} of {planned:,} planned queries spent"),
        ("access", True, f"the attacker saw: {soft}"),
        ("data-free", manifest["data_free"], _images(manifest)),
        (
            "collapse",
            top < COLLAPSE,
            (f"the commonest answer is {top:.0%} of all" if histogram else "no answers yet")
            + (f"; {renewed} times a student {RENEWED}, and got fresh weights" if renewed else ""),
        ),
        (
            "bound of eq. 4",
            not faults and (limits is not None or not manifest.get("bounded")),
            "; ".join(faults) or _held(limits, manifest.get("bounded")),
        ),
        ("selection", True, "the final model, never chosen on test images"),
    ]
    if manifest.get("probe_every"):
        flags.append(
            ("same target", True, f"asked every {manifest['probe_every']:,} queries, it answered alike")
        )
    if len(manifest["budgets"]) > 1:
        before = ", ".join(f"{budget:,}" for budget in manifest["budgets"][:-1])
        flags.append(("extended", False, f"planned for {before} queries first, then extended"))
    return [{"name": name, "ok": ok, "text": text} for name, ok, text in flags]


def _images(manifest: dict[str, Any]) -> str:
    if manifest["data_free"]:
        return "no outside images" + ("; a procedural prior" if manifest.get("procedural") else "")
    about = manifest.get("outside") or {"name": "an unknown set", "split": "", "images": 0}
    return f"asks the images of others: {about['name']} {about['split']}, {about['images']:,}"


def _held(limits: dict[str, Any] | None, bounded: bool | None) -> str:
    if limits is not None:
        return "holds at every evaluation"
    return "its terms were not recorded" if bounded else "not defined for this method"
