"""The paper's tables on one GPU: every cell of benchmarks/claims/paper.toml, in parts of ten minutes.

Works for --minutes, then stops with a snapshot; the same command goes on where it stopped, and says
"done" (exit code 0) or "to be continued" (3). --dry: the same path at toy size, on a CPU.
"""

import argparse
import json
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from summary import read, write

import dualstudent as ds
from dualstudent import sweep as sweeps
from dualstudent.errors import Stopped
from dualstudent.experiment import attack_run, sweep_over
from dualstudent.sweep import Cell
from dualstudent.sweep.matrix import Goal
from dualstudent.sweep.work import prepare, work

HERE = Path(__file__).parent
SPEC = HERE.parent / "claims" / "paper.toml"
EXPECTED: dict[str, Any] = tomllib.loads((HERE / "expected.toml").read_text())
DEFAULT, CONTINUED = "cifar10/DS/soft", 3
TRAINING = 4  # minutes that a target may take: a later one is begun in the next part
TOY = {"student": "digits-cnn", "batch": 8, "width": 4, "noise_size": 8, "memory": 100, "warm": 2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[DEFAULT], help=f"beginnings of names ({DEFAULT}); all")
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
        if cell.seed in args.seeds and any(cell.name.startswith(o) or o == "all" for o in args.only)
    ]
    if not wanted:
        parser.error(f"--only {' '.join(args.only)} is none of the cells: see --list")
    if args.list:
        for cell in sweep.cells:
            print(described(cell))
        return 0
    out = (args.out or sweep.out).absolute()
    place = {"old": str(sweep.out), "new": str(out), "data_dir": args.data_dir, "dry": args.dry}
    cells = [placed(cell, **place) for cell in with_starts(wanted, sweep)]

    def left() -> float:
        return args.minutes - (time.monotonic() - began) / 60

    results = out / "results.json" if args.dry else HERE / "results.json"
    try:
        for cell in cells:
            do(cell, results, left)
        proxy = next(g for g in sweep.goals if g.name == "cifar10, again")
        attacks(cells, moved(proxy, **place), results, left)
    except Stopped as stopped:
        print(f"{stopped}; to be continued", flush=True)
        return CONTINUED
    print("done", flush=True)
    return 0


def do(cell: Cell, results: Path, left: Callable[[], float]) -> None:
    """Do one cell, its target first, and keep what came of it; pass without its data. Raises Stopped."""
    if sweeps.state(cell) != "done":
        try:
            trained(cell.target, cell.data_dir, left)
        except ds.UserError as error:
            print(f"{cell.name}: not possible here: {error}", flush=True)
            return
        print(described(cell), flush=True)
        work(asdict(cell), lambda: left() < 0)
    report(cell, results)


def trained(goal: Goal, data_dir: str | None, left: Callable[[], float]) -> None:
    """Train a target, unless what is left of this part does not suffice. Raises Stopped, UserError."""
    if (Path(goal.path) / "target.json").is_file():
        return
    if left() < TRAINING and goal.train is not None and goal.train["arch"].startswith("resnet"):
        raise Stopped(f"no time for the target {goal.name} in this part")
    prepare(goal, data_dir)
    accuracy = read(Path(goal.path) / "target.json")["test_accuracy"]
    print(f"target {goal.name}: accuracy {accuracy:.4f}", flush=True)


def report(cell: Cell, results: Path) -> None:
    """Write a cell into results.json, beside what the paper has."""
    run = ds.Run(cell.path)
    names = ["budget", "spent", "seed", "labels", "target_accuracy", "accuracy", "accuracy_each"]
    names += ["agreement", "agreement_ci", "reached", "curve", "timing"]
    found = {"n": 1, "data": cell.target.name, "split": cell.target.split, "device": device()}
    found |= {name: run.result[name] for name in names}
    paper = expected(cell)
    if paper is not None:
        near = 100 * run.result["accuracy"] >= paper - EXPECTED["tolerance"]
        found["paper"] = {"accuracy": paper, "tolerance": EXPECTED["tolerance"], "reached": near}
    keep(results, "cells", cell.name, found)


def attacks(cells: list[Cell], proxy: Goal, results: Path, left: Callable[[], float]) -> None:
    """Attack the targets of finished runs with their clones, as in table 2. Raises Stopped."""
    for cell in cells:
        known = EXPECTED["attacks"].get(cell.labels, {})
        about = cell.target.name == "cifar10" and cell.row in known and cell.seed == 0
        if not about or sweeps.state(cell) != "done" or (Path(cell.path) / "transfer.json").exists():
            continue
        if left() < 0:
            raise Stopped("no time for attacks in this part")
        trained(proxy, cell.data_dir, left)
        data = ds.load_data(
            read(Path(proxy.path) / "target.json")["data"], cell.target.split, folder=cell.data_dir
        )
        kinds = sweep_over(("fgsm", "bim", "pgd"), [3 / 255], step=1 / 255, iterations=10, restarts=1)
        try:
            found = attack_run(cell.path, data, kinds, images=min(1000, len(data)), same_data=proxy.path)
        except ds.UserError as error:
            print(f"{cell.name}: no attacks: {error}", flush=True)
            return
        keep(results, "attacks", cell.name, {**found, "paper": known[cell.row]})


def keep(results: Path, part: str, name: str, found: dict[str, Any]) -> None:
    known = read(results) if results.exists() else {}
    parts: dict[str, Any] = {key: known.get(key, {}) for key in ("cells", "attacks")}
    parts[part][name] = found
    write(results, "benchmarks/paper/command.sh", parts)


def expected(cell: Cell) -> float | None:
    """Return the accuracy that the paper has, in percent."""
    tables = (t for t in EXPECTED["accuracy"] if t["target"] == cell.target.name)
    return next((t[cell.row][cell.labels] for t in tables if cell.labels in t.get(cell.row, {})), None)


def described(cell: Cell) -> str:
    paper = expected(cell)
    want = "not in the paper" if paper is None else f"expected {paper:.2f} ± {EXPECTED['tolerance']:g} %"
    minutes = EXPECTED["minutes_per_million"][cell.method] * cell.budget / 1e6
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
    elif not torch.cuda.is_available() and cell.precision == "tf32":
        values |= {"precision": "fp32"}
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
