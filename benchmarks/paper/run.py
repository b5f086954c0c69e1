"""The paper's tables on one GPU: every cell of benchmarks/claims/paper.toml, in parts of ten minutes.

Works for --minutes, then stops with a snapshot; the same command goes on where it stopped, and says
"done" (exit code 0) or "to be continued" (3). --dry: the same path at toy size, on a CPU.
"""

import argparse
import fnmatch
import json
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from summary import kept, origin, read, write

import dualstudent as ds
from dualstudent import sweep as sweeps
from dualstudent.errors import Missing, Stopped
from dualstudent.experiment import attack_run, choose_device, sweep_over
from dualstudent.sweep import Cell
from dualstudent.sweep.goals import prepare
from dualstudent.sweep.matrix import Goal
from dualstudent.sweep.work import work

HERE = Path(__file__).parent
SPEC = HERE.parent / "claims" / "paper.toml"
EXPECTED: dict[str, Any] = tomllib.loads((HERE / "expected.toml").read_text())
COMMAND = "benchmarks/paper/command.sh"
DEFAULT, CONTINUED, MISTAKE = "cifar10/DS/soft", 3, 2
TRAINING = 6  # minutes that a target may take: with fewer left, one is begun in the next part
START = 0.5  # minutes from the command to a target: a part may be late by as much
ATTACKED = 500  # test images of an attack
TOY = {"student": "digits-cnn", "batch": 8, "width": 4, "noise_size": 8, "memory": 100, "warm": 2}
TOY |= {"compute_least": 20, "learnt": 8}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[DEFAULT], help=f"cells, with * ({DEFAULT}); all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="stop and keep a snapshot after this time")
    parser.add_argument("--list", action="store_true", help="say what there is, what is expected, how long")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the runs")
    args = parser.parse_args()
    began = time.monotonic()
    sweep = sweeps.read_sweep(SPEC)
    wanted = [
        cell
        for cell in sweep.cells
        if cell.seed in args.seeds and any(o == "all" or named(cell, o) for o in args.only)
    ]
    if not wanted:
        seeds = " ".join(map(str, args.seeds))
        parser.error(f"--only {' '.join(args.only)} --seeds {seeds}: none of the cells; see --list")
    if args.list:
        for cell in sweep.cells:
            print(described(cell))
        return 0
    if args.minutes <= TRAINING and not args.dry:
        print(
            f"--minutes {args.minutes:g}: more than {TRAINING}, or no target is ever begun", file=sys.stderr
        )
        return MISTAKE
    out = (args.out or (sweep.out.with_name("paper-dry") if args.dry else sweep.out)).resolve()
    place = {"old": str(sweep.out), "new": str(out), "data_dir": args.data_dir, "dry": args.dry}
    cells = [placed(cell, **place) for cell in with_starts(wanted, sweep)]

    def left() -> float:
        return float(args.minutes - (time.monotonic() - began) / 60)

    results = out / "results.json" if args.dry else HERE / "results.json"
    try:
        targets = [moved(goal, **place) for goal in sweep.goals]
        done = [cell for cell in cells if do(cell, targets, results, left)]
        attacks(done, next(g for g in targets if g.name == "cifar10, again"), results, left)
    except Stopped as stopped:
        print(f"{stopped}; to be continued", flush=True)
        return CONTINUED
    except ds.UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print("done", flush=True)
    return 0


def named(cell: Cell, pattern: str) -> bool:
    """Return whether a pattern, target/method/labels or less of it, is that of a cell."""
    parts = pattern.split("/")
    return all(map(fnmatch.fnmatchcase, cell.name.split("/"), parts)) and len(parts) <= 5


def do(cell: Cell, targets: list[Goal], results: Path, left: Callable[[], float]) -> bool:
    """Do one cell, its target first, and keep what came of it; pass without its data. Raises Stopped."""
    if sweeps.state(cell) != "done":
        owner = next(g for g in targets if g.path == cell.target.path and g.train is not None)
        try:
            trained(owner, cell.data_dir, left)
        except Missing as error:
            print(f"{cell.name}: passed over: {error}", flush=True)
            return False
        print(described(cell), flush=True)
        try:
            work(asdict(cell), lambda: left() < 0)
        except Stopped:
            keep(results, "unfinished", cell.name, {"device": device(), **picked(cell, ["spent", "curve"])})
            raise
    report(cell, results)
    return True


def trained(goal: Goal, data_dir: str | None, left: Callable[[], float]) -> None:
    """Train a target, unless what is left of this part does not suffice. Raises Stopped, UserError."""
    if (Path(goal.path) / "target.json").is_file():
        prepare(goal, data_dir)  # which refuses one that was trained otherwise
        return
    if left() < TRAINING - START and goal.train is not None and goal.train["arch"].startswith("resnet"):
        raise Stopped(f"no time for the target {goal.name} in this part, which may take {TRAINING} minutes")
    prepare(goal, data_dir)
    accuracy = read(Path(goal.path) / "target.json")["test_accuracy"]
    print(f"target {goal.name}: accuracy {accuracy:.4f}", flush=True)


def report(cell: Cell, results: Path) -> None:
    """Write a cell into results.json, beside what the paper has."""
    names = ["budget", "spent", "seed", "labels", "target_accuracy", "accuracy", "accuracy_each"]
    names += ["agreement", "agreement_ci", "reached", "curve", "timing"]
    found = {"n": 1, "data": cell.target.name, "split": cell.target.split, "device": device()}
    found |= picked(cell, names)
    paper = expected(cell)
    if paper is not None:
        near = 100 * found["accuracy"] >= paper - EXPECTED["tolerance"]
        found["paper"] = {"accuracy": paper, "tolerance": EXPECTED["tolerance"], "reached": near}
    keep(results, "cells", cell.name, found)


def picked(cell: Cell, names: list[str]) -> dict[str, Any]:
    """Return some values of a run's result.json."""
    result = ds.Run(cell.path).result
    return {name: result[name] for name in names}


def attacks(cells: list[Cell], proxy: Goal, results: Path, left: Callable[[], float]) -> None:
    """Attack the targets of finished runs with their clones, as in table 2. Raises Stopped."""
    for cell in cells:
        known = EXPECTED["attacks"].get(cell.labels, {})
        path = Path(cell.path) / "transfer.json"
        if cell.target.name != "cifar10" or cell.row not in known or cell.seed != 0:
            continue
        if not path.exists():
            if left() < 2:
                raise Stopped("no time for attacks in this part")
            trained(proxy, cell.data_dir, left)
            name = read(Path(proxy.path) / "target.json")["data"]
            data = ds.load_data(name, cell.target.split, folder=cell.data_dir)
            kinds = sweep_over(("fgsm", "bim", "pgd"), [3 / 255], step=1 / 255, iterations=10, restarts=1)
            images = min(ATTACKED, len(data))
            try:
                attack_run(
                    cell.path, data, kinds, images=images, same_data=proxy.path, device=choose_device("auto")
                )
            except ds.UserError as error:
                print(f"{cell.name}: no attacks: {error}", flush=True)
                continue
        keep(results, "attacks", cell.name, {**read(path), "paper": known[cell.row]})


def keep(results: Path, part: str, name: str, found: dict[str, Any]) -> None:
    parts: dict[str, Any] = {key: kept(results, key) for key in ("cells", "attacks", "unfinished")}
    parts["unfinished"].pop(name, None)
    known, same = parts[part].get(name, {}), {key: value for key, value in found.items() if key != "device"}
    if known | same == known:
        return  # measured earlier, maybe on another machine
    parts[part][name] = {**origin(COMMAND), **found}
    with redirect_stdout(None):
        write(results, COMMAND, parts)


def expected(cell: Cell) -> float | None:
    """Return the accuracy that the paper has, in percent."""
    tables = (t for t in EXPECTED["accuracy"] if t["target"] == cell.target.name)
    return next((t[cell.row][cell.labels] for t in tables if cell.labels in t.get(cell.row, {})), None)


def described(cell: Cell) -> str:
    paper = expected(cell)
    want = "not in the paper" if paper is None else f"expected {paper:.2f} ± {EXPECTED['tolerance']:g} %"
    minutes = EXPECTED["minutes_per_million"][cell.method] * cell.budget / 1e6
    minutes *= EXPECTED["times"][cell.precision]
    if cell.method == "dual-student":  # a climb costs about a tenth of an iteration of 1:5
        minutes *= 0.9 + 0.1 * 5 / cell.recipe["student_steps"]
    return f"{cell.name}: {want}, about {minutes:.0f} min on one H200"


def with_starts(wanted: list[Cell], sweep: sweeps.Sweep) -> list[Cell]:
    """Return the cells, and those that they go on from, in the file's order."""
    paths = {cell.path for cell in wanted} | {cell.start for cell in wanted}
    return [cell for cell in sweep.cells if cell.path in paths]


def placed(cell: Cell, *, old: str, new: str, data_dir: Path | None, dry: bool) -> Cell:
    """Return a cell in another folder, with other data; dry: at toy size."""
    values = json.loads(json.dumps(asdict(cell)).replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]))
    values |= {"target": moved(cell.target, old=old, new=new, data_dir=data_dir, dry=dry)}
    values |= {"data_dir": None if data_dir is None else str(data_dir.absolute())}
    if dry:
        toy = {name: value for name, value in TOY.items() if name in values["recipe"]}
        values |= {"precision": "fp32", "budget": 120 if cell.start is None else 40, "points": 2}
        values |= {"recipe": values["recipe"] | toy}
    return Cell(**values)


def moved(goal: Goal, *, old: str, new: str, data_dir: Path | None, dry: bool) -> Goal:
    goal = replace(goal, path=goal.path.replace(old, new))
    if dry and goal.train is not None:
        training = {"epochs": 1, "batch": 128}
        train = {"data": "digits", "arch": "digits-cnn", "seed": goal.train["seed"], "training": training}
        goal = replace(goal, train=train)
    return replace(goal, split="test") if dry else goal


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    raise SystemExit(main())
