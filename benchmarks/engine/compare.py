"""Alternate engine and plain loop, each in a process of its own, and write results.json."""

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from summary import kept, origin, write

HERE = Path(__file__).parent
PAIRS = 5
FULL = {"a": (1, 64), "b": (3, 256), "c": (12, 256)}  # iterations, batch
QUICK: dict[str, tuple[int, int]] = {"a": (1, 16), "b": (1, 256), "c": (6, 256)}


def measure(kind: str, case: str, iterations: int, batch: int, *, operations: bool) -> dict[str, float]:
    command = [sys.executable, str(HERE / "measure.py"), kind, case, str(iterations), str(batch)]
    output = subprocess.run(
        [*command, *(["--operations"] if operations else [])], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return dict(json.loads(output.splitlines()[-1]))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(case: str, iterations: int, batch: int, pairs: int, *, operations: bool) -> dict[str, Any]:
    """Return the figures of one case."""
    rows = [
        {
            kind: measure(kind, case, iterations, batch, operations=operations)
            for kind in (("engine", "plain") if pair % 2 == 0 else ("plain", "engine"))
        }
        for pair in range(pairs)
    ]
    rate = {kind: [row[kind]["queries"] / row[kind]["cpu_s"] for row in rows] for kind in ("engine", "plain")}
    floor = [row["engine"]["peak_flops"] / row["engine"]["flops_per_query"] for row in rows]
    return {
        "n": pairs,
        "batch": batch,
        "iterations": iterations,
        "timed": "each operation by itself" if operations else "whole iterations",
        "ratio": spread([row["plain"]["cpu_s"] / row["engine"]["cpu_s"] for row in rows]),
        "ratio_wall": spread([row["plain"]["wall_s"] / row["engine"]["wall_s"] for row in rows]),
        "queries_per_cpu_s": {kind: spread(rate[kind]) for kind in rate},
        "peak_mb": {kind: max(row[kind]["peak_mb"] for row in rows) for kind in rate},
        "mflop_per_query": rows[0]["engine"]["flops_per_query"] / 1e6,
        "peak_gflops": spread([row["engine"]["peak_flops"] / 1e9 for row in rows]),
        "floor_queries_per_cpu_s": spread(floor),
        "share_of_floor": spread([r / f for r, f in zip(rate["engine"], floor, strict=True)]),
    }


def table(cases: dict[str, dict[str, Any]]) -> Table:
    shown = Table(title="CPU time, one thread: plain loop / engine", title_justify="left")
    for column in ("case", "ratio", "min – max", "queries/CPU-s", "plain", "of the floor", "MB", "plain MB"):
        shown.add_column(column, justify="left" if column == "case" else "right")
    for name, case in cases.items():
        rate, ratio = case["queries_per_cpu_s"], case["ratio"]
        shown.add_row(
            name,
            f"{ratio['median']:.2f}",
            f"{ratio['min']:.2f} – {ratio['max']:.2f}",
            f"{rate['engine']['median']:,.1f}",
            f"{rate['plain']['median']:,.1f}",
            f"{case['share_of_floor']['median']:.0%}",
            f"{case['peak_mb']['engine']:,.0f}",
            f"{case['peak_mb']['plain']:,.0f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="(b), (c) whole, (a) per operation at batch 16")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--cases", default="abc", help="letters")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not args.cases or set(args.cases) - set(FULL):
        parser.error(f"--cases {args.cases}: letters of {''.join(FULL)}")
    sizes = QUICK if args.quick else FULL
    out = args.out or (Path("runs/engine-quick.json") if args.quick else HERE / "results.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["benchmarks/engine/command.sh", *sys.argv[1:]])
    cases = kept(out, "cases")
    for case in args.cases:
        pairs, each = 1 if args.quick else args.pairs, args.quick and case == "a"
        cases[case] = origin(command) | compare(case, *sizes[case], pairs, operations=each)
        cases = dict(sorted(cases.items()))
        with redirect_stdout(None):
            write(out, command, {"cases": cases})  # a case that fails does not lose those before it
    Console(width=110).print(table(cases))


if __name__ == "__main__":
    main()
