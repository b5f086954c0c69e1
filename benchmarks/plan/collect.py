"""Collect what was foretold and what came."""

import re
from pathlib import Path
from typing import Any

from summary import read, write

RUNS = Path("runs/benchmarks/plan")

cases: dict[str, Any] = {}
for case, name in (("b", "mnist"), ("c", "digits")):
    found = re.search(r"estimated time ([\d,]+) s", (RUNS / f"{name}.plan").read_text())
    assert found is not None
    planned = float(found[1].replace(",", ""))
    took = read(RUNS / f"{name}-run" / "result.json")["timing"]["wall_s"]
    cases[case] = {"n": 1, "planned_s": planned, "took_s": took, "error": planned / took - 1}
write(Path("benchmarks/plan/results.json"), "benchmarks/plan/command.sh", {"cases": cases})
