"""Collect what was foretold and what came."""

import re
from pathlib import Path
from typing import Any

from summary import read, spread, write

RUNS = Path("runs/benchmarks/plan")


def foretold(plan: Path) -> float:
    found = re.search(r"estimated time ([\d,]+) s", plan.read_text())
    assert found is not None, plan
    return float(found[1].replace(",", ""))


cases: dict[str, Any] = {}
for case, name in (("b", "mnist"), ("c", "digits")):
    planned = [foretold(RUNS / f"{name}{seed}.plan") for seed in (0, 1, 2)]
    took = [read(RUNS / f"{name}-run{seed}" / "result.json")["timing"]["wall_s"] for seed in (0, 1, 2)]
    error = [one / two - 1 for one, two in zip(planned, took, strict=True)]
    cases[case] = {"planned_s": spread(planned), "took_s": spread(took), "error": spread(error)}
write(Path("benchmarks/plan/results.json"), "benchmarks/plan/command.sh", {"cases": cases})
