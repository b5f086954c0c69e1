"""The claim that the clone is a better proxy for attacks: FGSM, BIM and PGD of the runs of digits.toml.

Three seeds; the better student of each run, chosen on procedural images that no student learnt; beside
them three models trained on the same data, and the target itself. Writes transfer.json.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from summary import write
from torch import nn

import dualstudent as ds
from dualstudent import priors
from dualstudent import sweep as sweeps
from dualstudent.evaluation.transfer import Attack, better_student, transfer
from dualstudent.experiment import sweep_over
from dualstudent.ledger import Account
from dualstudent.machine import keep_memory
from dualstudent.networks import load_student
from dualstudent.sweep.summary import over_seeds

HERE = Path(__file__).parent
TARGET, OTHERS = Path("runs/claims/digits/targets/digits"), Path("runs/claims/digits/same-data")
EPS, HELD_BACK, SEEDS = (8, 16, 32), 500, (0, 1, 2)
METHODS = (
    *("dual-student, paper", "dual-student, tuned", "dfme", "maze", "disguide", "dfms-sl, tuned"),
    *("dfms-hl, tuned", "dfms-sl + dual-student, gentle", "dfms-hl + dual-student, gentle"),
    *("noise, tuned", "procedural, tuned", "real images"),
)


def attacks() -> list[Attack]:
    """Return each kind at each size: 10 iterations of a quarter of the size, one start."""
    found: list[Attack] = []
    for eps in EPS:
        found += sweep_over(("fgsm", "bim", "pgd"), [eps / 255], step=eps / 1020, iterations=10, restarts=1)
    return found


def proxies(target: Any, account: Account) -> dict[tuple[str, str], dict[int, nn.Module]]:
    """Return the networks on which images are made, by name and labels, then by seed."""
    found: dict[tuple[str, str], dict[int, nn.Module]] = {("the target itself", "–"): {0: target.white_box()}}
    for seed in SEEDS:
        place = OTHERS / f"seed{seed}"
        if not (place / "target.json").exists():
            ds.targets.train_target("digits", "digits-cnn", place, seed=100 + seed)
        other: Any = ds.open_target(str(place)).target
        found.setdefault(("same data", "–"), {})[seed] = other.white_box()
    torch.manual_seed(0)
    held = priors.procedural(HELD_BACK, target.spec.shape)
    for cell in sweeps.read_sweep(HERE / "digits.toml").cells:
        if cell.row in METHODS and cell.possible:
            students = load_student(cell.path).students
            best = better_student(students, target, held, account)
            found.setdefault((cell.row, cell.labels), {})[cell.seed] = students[best]
    return found


def rows_of(name: str, labels: str, rows: Mapping[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return mean and interval over seeds of each attack."""
    merged = []
    for same in zip(*rows.values(), strict=True):
        about = {key: same[0][key] for key in ("kind", "eps", "targeted", "step", "iterations", "restarts")}
        row = {"proxy": name, "labels": labels, **about, "rule": same[0]["rule"], "n": len(same)}
        for figure in ("success", "success_all"):
            values = [r[figure] for r in same]
            spread = over_seeds(values)
            half = None if spread is None else spread.half
            row[figure] = {"mean": statistics.fmean(values), "half_ci95": half, "values": values}
        merged.append(row)
    return merged


def main() -> None:
    keep_memory()
    torch.set_num_threads(1)
    target, data, account = ds.open_target(str(TARGET)).target, ds.load_data("digits"), Account("transfer")
    found: list[dict[str, Any]] = []
    for (name, labels), networks in proxies(target, account).items():
        each = {s: transfer(attacks(), {name: net}, target, data, account) for s, net in networks.items()}
        found += rows_of(name, labels, each)
        print(name, labels, flush=True)
    about = {"images": len(data), "seeds": list(SEEDS), "asked": account.asked}
    write(HERE / "transfer.json", "benchmarks/claims/command.sh transfer", {**about, "rows": found})


if __name__ == "__main__":
    main()
