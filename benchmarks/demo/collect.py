"""Collect the demo's figures over seeds."""

from pathlib import Path

from summary import read, spread, write

from dualstudent.report import curves_png

RUNS = [Path("runs/benchmarks/demo") / str(seed) for seed in (0, 1, 2)]

figures = {
    "target_accuracy": spread([read(run / "target" / "target.json")["test_accuracy"] for run in RUNS]),
    "seconds": spread([float((run / "seconds").read_text()) for run in RUNS]),
}
for name in ("soft", "hard", "paper"):
    results = [read(run / name / "result.json") for run in RUNS]
    figures[name] = {  # type: ignore[assignment]
        "budget": results[0]["budget"],
        "spent": results[0]["spent"],
        "method": results[0]["method"],
        "preset": results[0]["preset"],
        "agreement": spread([result["agreement"] for result in results]),
        "accuracy": spread([result["accuracy"] for result in results]),
    }
write(Path("benchmarks/demo/results.json"), "benchmarks/demo/command.sh", figures)
curves_png([RUNS[0] / name for name in ("soft", "hard", "paper")], Path("docs/demo.png"))
