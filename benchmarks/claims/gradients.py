"""The claim that disagreement gives better gradients: eq. 6 and cosine, along runs of Dual Student on digits.

The owner sees the target's network; three seeds, probabilities and labels, on generated and on real
images, against forward differences with 1 and 10 directions. Writes gradients.json.
"""

import math
import statistics
from pathlib import Path
from typing import Any

import torch
from summary import write

import dualstudent as ds
from dualstudent import engine
from dualstudent.evaluation.gradients import gradient_quality
from dualstudent.experiment.again import facing
from dualstudent.ledger import Account
from dualstudent.machine import keep_memory

HERE = Path(__file__).parent
TARGET = Path("runs/claims/digits/targets/digits")
QUERIES, SEEDS, IMAGES, POINTS = 50_000, (0, 1, 2), 64, (0.02, 0.1, 0.3, 0.6, 1.0)


def along(preset: str, labels: str, seed: int) -> list[dict[str, Any]]:
    """Return the quality of each gradient at a few points of one run."""
    opened = ds.open_target(str(TARGET))
    network = opened.target.white_box()  # type: ignore[attr-defined]
    method, target = ds.DualStudent.preset(preset), facing(opened.target, labels)  # type: ignore[arg-type]
    steps = sum(phase.steps for phase in engine.plan(method, [QUERIES]))
    at = {max(1, round(share * steps)) for share in POINTS}
    real = opened.target.spec.encode(ds.load_data("digits").pixels(0, IMAGES))
    rows: list[dict[str, Any]] = []

    def watch(moment: engine.Moment[Any]) -> bool:
        if moment.step in at:
            made = moment.asked[-1][0][:IMAGES]
            for source, x in (("generated", made), ("real", real)):
                torch.manual_seed(moment.step)
                found = gradient_quality(moment.state.students, network, x, hard=labels == "hard")
                rows.append({"queries": moment.spent, "images": source, "gradients": found})
        return False

    account = Account("attack", QUERIES)
    engine.run(method, target, account, budgets=[QUERIES], seed=seed, watch=watch)
    return rows


def main() -> None:
    keep_memory()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for preset in ("paper", "tuned"):
        for labels in ("soft", "hard"):
            runs = [along(preset, labels, seed) for seed in SEEDS]
            for points in zip(*runs, strict=True):
                for name in points[0]["gradients"]:
                    values = [point["gradients"][name] for point in points]
                    row = {"preset": preset, "labels": labels, "queries": points[0]["queries"]}
                    row |= {"images": points[0]["images"], "gradient": name, "n": len(SEEDS)}
                    for figure in ("eq6", "cosine"):
                        known = [v[figure] for v in values if not math.isnan(v[figure])]
                        row[figure] = statistics.fmean(known) if known else None
                        row[f"{figure}_values"] = known
                    found.append(row | {"asked_per_image": values[0]["asked"] / IMAGES})
            print(preset, labels, flush=True)
    write(HERE / "gradients.json", "benchmarks/claims/command.sh gradients", {"rows": found})


if __name__ == "__main__":
    main()
