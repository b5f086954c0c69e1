"""The targets of a sweep: whether they are those of its runs, and trained where they are its own."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualstudent.data import load_data
from dualstudent.errors import Stopped, UserError
from dualstudent.experiment import choose_device
from dualstudent.files import read_json, write_json
from dualstudent.sweep.matrix import Goal
from dualstudent.targets import Training, train_target
from dualstudent.targets.folder import file_sum

RECORD = "sweep.json"  # beside a target: how the sweep trained it


def another(goal: Goal, known: Mapping[str, Any]) -> bool:
    """Return whether a target, as far as can be seen without asking it, is another than a run's."""
    record, (kind, _, rest) = Path(goal.path) / "target.json", goal.path.partition(":")
    if goal.data is None:
        return record.is_file() and known["sha256"] != read_json(record)["sha256"]
    place = Path(rest).parent
    if kind == "onnx" and known["files"] and Path(rest).is_file():  # wherever it lies
        files = {place / name: digest for name, digest in known["files"].items()}
        return not all(file.is_file() and file_sum(file) == digest for file, digest in files.items())
    return bool(known["reference"] != goal.path)


def trained_otherwise(goal: Goal) -> bool:
    """Return whether a target's folder says that it was trained in another way than the sweep has it."""
    record = Path(goal.path) / RECORD
    if goal.train is None or not record.is_file():
        return False
    known = [  # an older version's record lacks options that have come since
        {**values, "training": {**asdict(Training()), **values["training"]}}
        for values in (read_json(record), goal.train)
    ]
    return known[0] != known[1]


def untrained(goal: Goal, data_dir: str | None) -> bool:
    """Return whether a sweep's own target is still to be trained; its data are there.

    Raises UserError where a folder or a file holds no target, or there are no data.
    """
    if goal.data is not None:
        kind, _, rest = goal.path.partition(":")
        if kind == "onnx" and not Path(rest).is_file():
            raise UserError(f"no model {rest} (a relative FILE is looked for beside the sweep's file)")
        load_data(goal.data, goal.split, folder=data_dir)
        return False
    folder = Path(goal.path)
    if (folder / "target.json").is_file():
        if trained_otherwise(goal):
            raise UserError(
                f"{folder} was trained otherwise than the sweep says: give the target another name"
            )
        return False
    if goal.train is None:
        raise UserError(f"no target '{folder}': give a folder written by 'dualstudent target train'")
    for split in dict.fromkeys(("train", "test", goal.split)):
        load_data(goal.train["data"], split, folder=data_dir)
    return True


def prepare(goal: Goal, data_dir: str | None, stop: Callable[[], bool] = lambda: False) -> None:
    """Train a sweep's own target, once. Raises UserError; Stopped after an epoch, keeping nothing."""
    if not untrained(goal, data_dir):
        return
    assert goal.train is not None
    folder = Path(goal.path)

    def epoch(done: int, total: int, text: str) -> None:
        if stop() and done < total:
            raise Stopped(f"the target {goal.name} was stopped after {text}: it is trained anew")

    train_target(
        goal.train["data"],
        goal.train["arch"],
        folder,
        seed=goal.train["seed"],
        data_dir=None if data_dir is None else Path(data_dir),
        training=Training(**goal.train["training"]),
        device=choose_device("auto"),
        progress=epoch,
    )
    write_json(folder / RECORD, goal.train)
