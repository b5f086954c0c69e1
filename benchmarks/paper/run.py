"""The paper's CIFAR-10 run on one GPU: ResNet-34 target, two ResNet-18 students, 20 M queries.

Works for --minutes, then stops with a snapshot; the same command goes on where it stopped, and says
"done" (exit code 0) or "to be continued" (3). --dry: the same path at toy size, on a CPU.
"""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from summary import read, write

import dualstudent as ds
from dualstudent.errors import Stopped
from dualstudent.experiment import choose_device
from dualstudent.machine import keep_memory
from dualstudent.methods import DualStudent
from dualstudent.numerics import Numerics
from dualstudent.targets import TargetOptions, Training, train_target

CONTINUED = 3


@dataclass(frozen=True)
class Size:
    """What is trained and asked."""

    data: str
    split: str
    target: str
    student: str
    queries: int
    training: Training
    changes: dict[str, Any]


FULL = Size(
    "cifar10",
    "test_lossless",
    "resnet34",
    "resnet18",
    20_000_000,
    Training(epochs=80, batch=256, rate=0.2),
    {},
)
DRY = Size("digits", "test", "digits-cnn", "digits-cnn", 1_500, Training(epochs=2), {"batch": 32, "width": 8})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--queries", type=int, help="default: 20 M")
    parser.add_argument("--labels", choices=["soft", "hard"], default="soft")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], help="default: bf16 on a GPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop and keep a snapshot after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/paper"))
    args = parser.parse_args()
    began = time.monotonic()
    keep_memory()
    size, device = DRY if args.dry else FULL, choose_device("auto")
    precision = args.precision or ("bf16" if device == "cuda" else "fp32")
    queries = args.queries or size.queries
    folder = args.out / ("dry" if args.dry else "full")
    target = folder / "target"
    if not (target / "target.json").exists():
        train_target(
            size.data,
            size.target,
            target,
            seed=args.seed,
            data_dir=args.data_dir,
            training=replace(size.training, precision=precision),
            device=device,
            progress=lambda done, total, text: print(f"target: {text}", flush=True),
        )
    print(f"target: accuracy {read(target / 'target.json')['test_accuracy']:.4f}", flush=True)
    out = folder / f"{args.labels}-{queries}-{precision}-seed{args.seed}"

    def late() -> bool:
        return time.monotonic() - began > 60 * args.minutes

    try:
        run = extracted(size, target, out, queries, precision, device, args, late)
    except Stopped as stopped:
        print(f"{stopped}; to be continued", flush=True)
        return CONTINUED
    report(size, target, run, args.dry)
    print("done", flush=True)
    return 0


def extracted(
    size: Size,
    target: Path,
    out: Path,
    queries: int,
    precision: Any,
    device: str,
    args: argparse.Namespace,
    late: Any,
) -> ds.Run:
    """Begin the run, go on with it, or return it if it is done."""
    if (out / "result.json").exists() and read(out / "result.json")["complete"]:
        return ds.Run(out)
    if (out / "snapshot.pt").exists():
        return ds.resume(out, stop=late)
    options = TargetOptions(space="normalised")  # the paper's: [-1, 1] in normalised values
    return ds.extract(
        replace(DualStudent.preset("paper"), student=size.student, **size.changes),
        ds.open_target(str(target), options, device=device),
        queries=queries,
        labels=args.labels,
        seed=args.seed,
        out=out,
        data=ds.load_data(size.data, size.split, folder=args.data_dir),
        preset="paper",
        device=device,
        numerics=Numerics(precision),
        target_options=options,
        data_dir=args.data_dir,
        overwrite=True,
        stop=late,
    )


def report(size: Size, target: Path, run: ds.Run, dry: bool) -> None:
    """Write this cell into results.json, beside those of other budgets, labels and seeds."""
    path = run.path.parent / "results.json" if dry else Path("benchmarks/paper/results.json")
    cells = read(path)["cells"] if path.exists() else {}
    names = ["budget", "spent", "seed", "labels", "target_accuracy", "accuracy", "accuracy_each", "agreement"]
    names += ["agreement_ci", "curve", "timing"]
    about = {
        "n": 1,
        "data": size.data,
        "split": size.split,
        "target": read(target / "target.json")["test_accuracy"],
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    cells[run.path.name] = {**about, "device": device, **{name: run.result[name] for name in names}}
    write(path, "benchmarks/paper/command.sh", {"cells": cells})


if __name__ == "__main__":
    raise SystemExit(main())
