"""Collect the figures of MNIST at 200k queries."""

from pathlib import Path
from typing import Any

from summary import read, write

RUNS = Path("runs/benchmarks/mnist")

figures: dict[str, Any] = {
    "target_accuracy": read(RUNS / "target" / "target.json")["test_accuracy"],
    "target_seconds": float((RUNS / "seconds").read_text()),
}
for preset in ("paper", "small"):
    if not (RUNS / preset / "result.json").exists():
        continue
    result = read(RUNS / preset / "result.json")
    names = [
        "budget",
        "spent",
        "seed",
        "agreement",
        "agreement_ci",
        "accuracy",
        "accuracy_each",
        "timing",
        "histogram",
    ]
    figures[preset] = {"n": 1, **{name: result[name] for name in names}}
    figures[preset]["tightness"] = result["bound"]["tightness"]
write(Path("benchmarks/mnist/results.json"), "benchmarks/mnist/command.sh", figures)
