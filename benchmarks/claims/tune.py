"""The same number of trials for every method, on digits: what each makes of budgets as small as these.

Eight recipes a method (the first as published), 20,000 queries, probabilities and labels, one seed that
the results do not use. Judged on the target's training images, so that its test images stay untouched.
Writes tuning.json after each method; the best are the presets `tuned`.
"""

import json
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import dualstudent as ds
from dualstudent import engine, methods
from dualstudent.evaluation import ask, fidelity, logits
from dualstudent.experiment.again import facing
from dualstudent.ledger import Account
from dualstudent.machine import keep_memory
from dualstudent.spec import Access

HERE = Path(__file__).parent
TARGET = Path("runs/claims/tuning/target")
QUERIES, SEED, TRIALS = 20_000, 100, 8
GAME = {"batch": 64, "learn_range": True, "generator_rate": 1e-3, "drops": (0.5, 0.8)}


def game(
    low: dict[str, float], *, climb: tuple[float, float] = (1e-3, 3e-3), **fixed: Any
) -> list[dict[str, Any]]:
    """Return the seven changes that every method with a generator is tried with; `low`: rates × 0.3."""
    base = {**GAME, **fixed, "generator_rate": climb[0]}
    high = {"generator_rate": climb[1]}
    return [
        base,
        {**base, **low},
        {**base, **high},
        {**base, **low, **high},
        {**base, "batch": 32},
        {**base, "batch": 32, **low},
        {**base, "batch": 128, **low},
    ]


def without(changes: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in change.items() if k not in names} for change in changes]


POOL: list[dict[str, Any]] = [
    {"rate_soft": 0.02, "rate_hard": 0.02},
    {"rate_soft": 0.15, "rate_hard": 0.15},
    {"replays": 8},
    {"replays": 8, "rate_soft": 0.02, "rate_hard": 0.02},
    {"batch": 32},
    {"batch": 32, "rate_soft": 0.02, "rate_hard": 0.02},
    {"students": 2},
]
DFMS: list[dict[str, Any]] = [
    {"batch": 64},
    {"batch": 64, "rate": 0.03},
    {"batch": 64, "rate": 0.03, "diversity": 50.0},
    {"batch": 64, "rate": 0.03, "gan_rate": 6e-4},
    {"batch": 32, "rate": 0.03},
    {"batch": 64, "rate": 0.03, "first": 0.5},
    {"batch": 64, "rate": 0.03, "diversity": 5.0},
]
CHANGES: dict[str, list[dict[str, Any]]] = {
    "dual-student": game({"rate_soft": 0.1, "rate_hard": 0.015}, average=0.0),
    "dfme": game({"rate": 0.03}),
    "maze": without(game({"rate": 0.03}, climb=(1e-2, 1e-1), directions=1), "drops"),
    "dfms-sl": DFMS,
    "dfms-hl": DFMS,
    "disguide": game({"rate": 0.01}),
    "procedural": POOL,
    "noise": POOL,
    "knockoff": POOL,
}


def trial(name: str, change: dict[str, Any]) -> dict[str, Any]:
    """Return what one recipe comes to from probabilities and, where it can, from labels."""
    keep_memory()
    torch.set_num_threads(1)
    kind = methods.find(name)
    opened, data = ds.open_target(str(TARGET)), ds.load_data("digits", "train")
    answers = ask(opened.target, data, Account("audit"))
    found: dict[str, Any] = {"change": change}
    for labels in ("soft", "hard") if kind.needs == Access.LABEL else ("soft",):
        method = replace(kind.preset(next(iter(kind.presets))), **change)
        target = facing(opened.target, labels)  # type: ignore[arg-type]
        try:
            state = engine.run(method, target, Account("attack", QUERIES), budgets=[QUERIES], seed=SEED)
        except ds.UserError as error:  # it diverged
            found[labels] = 0.0
            found["error"] = str(error)
            continue
        each = logits(state.clone, data, opened.target.spec)
        found[labels] = fidelity(each, answers, data, access=Access.PROBS)["agreement"]
    found["mean"] = statistics.fmean(found[labels] for labels in ("soft", "hard") if labels in found)
    return found


def main() -> None:
    if not (TARGET / "target.json").exists():
        ds.targets.train_target("digits", "digits-cnn", TARGET)
    path = HERE / "tuning.json"
    done: dict[str, Any] = json.loads(path.read_text())["methods"] if path.exists() else {}
    chosen = sys.argv[1:] or list(CHANGES)
    with ProcessPoolExecutor(2) as pool:
        for name in chosen:
            changes = [{}, *CHANGES[name]]
            assert len(changes) == TRIALS
            trials = list(pool.map(trial, [name] * TRIALS, changes))
            best = max(trials, key=lambda t: t["mean"])
            done[name] = {"best": best, "trials": trials}
            about = {
                "schema_version": 1,
                "command": "benchmarks/claims/tune.sh",
                "queries": QUERIES,
                "seed": SEED,
            }
            path.write_text(json.dumps({**about, "n": 1, "methods": done}, indent=1) + "\n")
            print(name, best, flush=True)


if __name__ == "__main__":
    main()
