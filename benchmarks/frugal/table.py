"""Collect frugal.toml and peers of benchmarks/claims: results.json, docs/methods/frugal.md."""

import argparse
import json
import statistics
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from collect import WORDS, gather, interval, share
from summary import origin, put, read, write

from dualstudent import sweep as sweeps

HERE = Path(__file__).parent
SPEC = HERE / "frugal.toml"
PAGE = HERE.parent.parent / "docs" / "methods" / "frugal.md"
LEVELS = (0.75, 0.80, 0.85, 0.90, 0.95)
GOALS = {  # what was wanted of frugal: agreement, median of three seeds, and minutes on two cores
    ("digits", "soft", 1_000): (0.95, 0.75),
    ("digits", "soft", 5_000): (0.985, 0.75),
    ("digits", "hard", 5_000): (0.965, 0.75),
    ("mnist", "soft", 5_000): (0.97, 5),
    ("mnist", "soft", 20_000): (0.992, 5),
    ("mnist", "hard", 20_000): (0.98, 5),
    ("fashion", "soft", 50_000): (0.87, 10),
    ("fashion", "soft", 200_000): (0.93, 25),
    ("fashion", "hard", 200_000): (0.85, 25),
    ("gtsrb", "soft", 200_000): (0.85, 30),
}
STUDENTS = ", LeNet-5 students"  # of the claims' rows whose students are those of frugal here


def peers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of benchmarks/claims for the same target, labels and budget, measured there.

    With LeNet-5 students where there are such, else with half-width ones.
    """
    suites = read(HERE.parent / "claims" / "results.json")["suites"]
    cells = {(row["target"], row["labels"], row["budget"]) for row in rows if row["method"] == "frugal"}
    found: list[dict[str, Any]] = []
    for cell in cells - {key for key in cells if key[0] == "digits"}:
        mine = [r for r in suites.get(cell[0], []) if (r["target"], r["labels"], r["budget"]) == cell]
        same = [row for row in mine if row["method"].endswith(STUDENTS)]
        names = [row | {"method": row["method"].removesuffix(STUDENTS)} for row in same]
        found += names or [row | {"method": row["method"] + ", half-width"} for row in mine]
    return found


def measured(results: Path, command: str, untimed: bool) -> list[dict[str, Any]]:
    """Return the rows of the runs that are here and the others that the file has, each with its origin.

    Rows of which the sweep knows nothing any more are left out. Seeds that are here come to those of the
    file's row if it has none of them, `untimed` without their seconds.
    """
    known = read(results) if results.exists() else {"rows": []}
    earlier = {name: known[name] for name in ("command", "commit", "machine") if name in known}
    cells = listed()
    rows = {key(row): earlier | row for row in known["rows"] if key(row) in cells}
    for row in json.loads(json.dumps(gather(SPEC))):
        old = rows.get(key(row))
        row["seeds"] = seeds(row)
        if old is None or set(row["seeds"]) >= set(seeds(old)):
            same = old is not None and old | row == old | {"seeds": row["seeds"]}
            rows[key(row)] = (old if old and same else origin(command)) | row
        elif not set(row["seeds"]) & set(seeds(old)):  # else a sweep that has begun anew and is not done yet
            rows[key(row)] = joined(old, origin(command) | row, untimed)
    with redirect_stdout(None):
        write(results, command, {"rows": list(rows.values())})
    return list(rows.values())


def seeds(row: dict[str, Any]) -> list[int]:
    """Return the seeds of a row; older ones, which have no such list, begin at 0."""
    return list(row.get("seeds", range(row["n"])))


def timed(row: dict[str, Any]) -> int:
    """Return how many of a row's seeds its seconds are the mean of."""
    return int(row.get("timed", row["n"]))


def of_timed(row: dict[str, Any]) -> str:
    return "" if timed(row) == row["n"] else f" (of {timed(row)})"


def joined(old: dict[str, Any], new: dict[str, Any], untimed: bool) -> dict[str, Any]:
    """Return the row of all seeds of two, measured apart; `timed` of them have the seconds that are told."""
    if old.get("device") != new["device"]:
        raise SystemExit(f"{key(old)}: {old.get('device')} and {new['device']} are not joined")
    row, n = {**old, "n": old["n"] + new["n"], "seeds": seeds(old) + seeds(new)}, (old["n"], new["n"])
    for name in ("agreement", "accuracy", "balance"):
        row[name] = interval(old[name]["values"] + new[name]["values"])
    row["timed"] = timed(old) + (0 if untimed else new["n"])
    row["seconds"] = statistics.fmean(
        (old["seconds"], new["seconds"]), (timed(old), row["timed"] - timed(old))
    )
    points = dict(old["curve"])
    row["curve"] = [[q, statistics.fmean((points[q], v), n)] for q, v in new["curve"] if q in points]
    row["data_free"] = old["data_free"] and new["data_free"]
    row.pop("reached", None)  # medians, which cannot be joined; the page takes them from the mean curve
    return row | {"commit": f"{old['commit']}, {new['commit']}"}


def listed() -> set[tuple[str, str, str, int]]:
    """Return the keys of the sweep's cells."""
    return {(c.target.name, c.row, c.labels, c.budget) for c in sweeps.read_sweep(SPEC).cells}


def key(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["target"], row["method"], row["labels"], row["budget"]


def reached(row: dict[str, Any], level: float) -> str:
    """Return the queries at which the mean curve first reaches a level, interpolated; in its last part, where
    the learning after the last query lies, all of them.
    """
    before, last = None, row["curve"][-1][0]
    for queries, value in row["curve"]:
        if value >= level:
            share = 1.0 if before is None or queries == last else (level - before[1]) / (value - before[1])
            start = queries if before is None else before[0]
            return f"{start + share * (queries - start):,.0f}"
        before = (queries, value)
    return "–"


def halves(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of how far frugal is off beside the best other data-free method, and beside itself with
    the same learning and nothing chosen.
    """
    head = ["target", "from", "queries", "frugal", "best other", "its method", "ratio", "nothing chosen"]
    lines = ["| " + " | ".join([*head, "ratio"]) + " |", "|" + "---|" * 9]
    for row in sorted((r for r in rows if r["method"] == "frugal"), key=place):
        cell = [row[name] for name in ("target", "labels", "budget")]
        same = [r for r in rows if [r[name] for name in ("target", "labels", "budget")] == cell]
        others = [r for r in same if r["data_free"] and not r["method"].startswith("frugal")]
        blind = [r for r in same if r["method"] == "frugal, nothing chosen"]
        mine, words = off(row), [row["target"], WORDS[row["labels"]], f"{row['budget']:,}"]
        words.append(f"{mine:.1f}")
        for found, named in ((others, True), (blind, False)):
            best = min(found, key=off) if found else None
            words.append(f"{off(best):.1f}" if best else "")
            words += [best["method"] if best else ""] if named else []
            words.append(f"{mine / off(best):.2f}" if best else "")
        lines.append("| " + " | ".join(words) + " |")
    return lines


def wanted(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of what was wanted, and came: median agreement and mean minutes over the seeds."""
    head = ["target", "from", "queries", "wanted, %", "median, %", "wanted, min", "mean, min", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    found = {key(row): row for row in rows}
    for (target, labels, budget), (agreement, minutes) in GOALS.items():
        row = found.get((target, "frugal", labels, budget))
        if row is None:
            continue
        median, took = statistics.median(row["agreement"]["values"]), row["seconds"] / 60
        words = [target, WORDS[labels], f"{budget:,}", f"{100 * agreement:.1f}", f"{100 * median:.1f}"]
        words += [f"{minutes:g}", f"{took:.{1 if minutes > 1 else 2}f}{of_timed(row)}", str(row["n"])]
        lines.append("| " + " | ".join(words) + " |")
    return lines


def off(row: dict[str, Any]) -> float:
    """Return the mean disagreement of a row in %."""
    return float(100 * (1 - row["agreement"]["mean"]))


def paces(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of the divergence that rates.py found, thousandths of a nat."""
    rates = sorted({row["rate"] for row in rows})
    lines = [
        "| batches | " + " | ".join(f"rate {rate:g}" for rate in rates) + " |",
        "|---" * (1 + len(rates)) + "|",
    ]
    for batches in sorted({row["batches"] for row in rows}):
        found = {row["rate"]: row["divergence"] for row in rows if row["batches"] == batches}
        lines.append(f"| {batches:,} | " + " | ".join(f"{1000 * found[rate]:.1f}" for rate in rates) + " |")
    return lines


def place(row: dict[str, Any]) -> tuple[str, bool, int, float, str]:
    best = -row["agreement"]["mean"]
    return row["target"], row["labels"] == "hard", row["budget"], best, row["method"]


def tried(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of what variants.py, signs.sh or large.sh measured: mean agreement over seeds, in %."""
    kinds = [kind for kind in WORDS if any(row["labels"] == kind for row in rows)]
    lines = ["| tried | " + " | ".join(WORDS[kind] for kind in kinds) + " |", "|---" * (1 + len(kinds)) + "|"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        found = [[r["agreement"] for r in rows if r["variant"] == name and r["labels"] == k] for k in kinds]
        words = [f"{100 * sum(each) / len(each):.1f}" if each else "" for each in found]
        lines.append("| " + " | ".join([name, *words]) + " |")
    return lines


def seconds(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.0f}{of_timed(row)}" + (" (GPU)" if row.get("device") == "cuda" else "")


def page(text: str, rows: list[dict[str, Any]]) -> str:
    """Return the page with all its tables anew."""
    rows = rows + peers(rows)
    levels = [f"{100 * level:.0f} %" for level in LEVELS]
    head = ["target", "from", "queries", "method", "n", "agreement, %", "accuracy, %", *levels, "s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=place):
        words = [row["target"], WORDS[row["labels"]], f"{row['budget']:,}", row["method"], str(row["n"])]
        words += [share(row["agreement"]), share(row["accuracy"])]
        words += [*(reached(row, level) for level in LEVELS), seconds(row)]
        lines.append("| " + " | ".join(words) + " |")
    lines += [
        "",
        "Disagreement with the target in %, beside the best other method without data:",
        "",
        *halves(rows),
    ]
    mine = partial(put, writer="table.py")
    text = mine(mine(text, "the figures", lines=lines), "what was wanted", lines=wanted(rows))
    for name in ("variants", "signs", "large"):
        if (HERE / f"{name}.json").exists():
            text = mine(text, name, lines=tried(read(HERE / f"{name}.json")["rows"]))
    return mine(text, "rates", lines=paces(read(HERE / "rates.json")["rows"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    words = "seeds that come to others ran beside something else: leave their seconds out"
    parser.add_argument("--untimed", action="store_true", help=words)
    told = parser.parse_args()
    rows = measured(HERE / "results.json", "benchmarks/frugal/command.sh", told.untimed)
    PAGE.write_text(page(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
