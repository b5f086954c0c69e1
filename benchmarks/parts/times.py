"""Time parts and threads; write results.json and the tables of docs/performance.md."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts import Part, Run, parts, rows
from summary import put, spread, write

import dualstudent as ds
from dualstudent import threads
from dualstudent.machine import keep_memory
from dualstudent.methods import Frugal, game
from dualstudent.numerics import Numerics

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "performance.md"
LEAST_S, ROUNDS, FEW = 0.05, 9, 3  # a run that is shorter is repeated; rounds, and those of what takes long
ENGINE = HERE.parent / "engine" / "measure.py"
PAIRS = (  # students that learn, image, batch, precision
    ("lenet5", (1, 28, 28), 128, "fp32"),
    ("resnet8", (3, 32, 32), 128, "fp32"),
    ("resnet8", (3, 32, 32), 128, "bf16"),
)


def took(run: Run, times: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(times):
        run()
    return (clock() - start) / times


def turns(runs: list[Run], clock: Callable[[], float]) -> list[list[float]]:
    """Return how long each of several runs takes, in turns, by rounds."""
    times = []
    for run in runs:
        run()
        times.append(max(1, round(LEAST_S / took(run, 1, clock))))
    rounds = ROUNDS if max(times) > 1 else FEW
    return [[took(run, n, clock) for run, n in zip(runs, times, strict=True)] for _ in range(rounds)]


def compared(part: Part) -> dict[str, Any]:
    each = turns([part.ours, part.other], time.process_time)
    print(part.name, "|", part.on, flush=True)
    return {
        "part": part.name,
        "on": part.on,
        "ratio": spread([other / ours for ours, other in each]),
        "ms": 1e3 * statistics.median(ours for ours, _ in each),
    }


def memory() -> dict[str, Any]:
    """Compare case b of the engine with kept memory and without, each in a process of its own."""
    command = [sys.executable, str(ENGINE), "engine", "b", "1", "256"]

    def seconds(*more: str) -> float:
        out = subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE, text=True).stdout
        return float(json.loads(out.splitlines()[-1])["cpu_s"])

    each = [(seconds(), seconds("--free")) for _ in range(FEW)]
    return {
        "part": "freed memory is kept",
        "on": "case b of the engine",
        "ratio": spread([other / ours for ours, other in each]),
        "ms": 1e3 * statistics.median(ours for ours, _ in each),
    }


def lesson(arch: str, shape: tuple[int, int, int], batch: int, precision: str, students: int) -> Run:
    """Return the learning of one batch by frugal's students."""
    method = Frugal(student=arch, students=students)
    state = method.init(ds.Spec(shape, 10))
    x, answer = rows(batch, *shape).clamp(0, 1), torch.randn(batch, 10).softmax(1)
    state.students.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    casting = Numerics(precision).casting("cpu")  # type: ignore[arg-type]

    def run() -> None:
        with casting:
            game.learn(state, game.usual(ds.Spec(shape, 10)), x, answer)

    return run


def at(operation: int, students: int, run: Run) -> Run:
    """Return a run with so many threads an operation, and so many students at once."""

    def changed() -> None:
        torch.set_num_threads(operation)
        threads.side_by_side(students)
        run()

    return changed


def side_by_side(arch: str, shape: tuple[int, int, int], batch: int, precision: str) -> dict[str, Any]:
    """Time a batch of two students: in turn by one thread, in turn by all, and side by side."""
    make = partial(lesson, arch, shape, batch, precision)
    cores = threads.cores()
    one, two = make(1), make(2)

    def in_turn() -> None:
        one()
        one()

    runs = [at(1, 1, in_turn), at(cores, 1, in_turn), at(cores, cores, two)]
    each = turns(runs, time.perf_counter)
    torch.set_num_threads(1)
    threads.side_by_side(1)
    names = ("one", "all", "side_by_side")
    figures = {name: spread([1e3 * row[i] for row in each]) for i, name in enumerate(names)}
    print("side by side |", arch, precision, flush=True)
    return {"students": arch, "shape": shape, "batch": batch, "precision": precision, "ms": figures}


def part_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| what | on | times as fast: median (range) |"
    yield "|---|---|---|"
    for row in rows:
        figure, values = row["ratio"]["median"], row["ratio"]["values"]
        yield f"| {row['part']} | {row['on']} | {figure:.2f} ({min(values):.2f} – {max(values):.2f}) |"


def thread_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| two students | images | | in turn, one thread | in turn, all threads | side by side |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        words = [f"{row['ms'][name]['median']:,.1f} ms" for name in ("one", "all", "side_by_side")]
        image = f"{row['batch']} of " + "×".join(str(n) for n in row["shape"])
        yield "| " + " | ".join([row["students"], image, row["precision"], *words]) + " |"


def page(text: str, figures: dict[str, Any]) -> str:
    """Return the page with both tables anew."""
    text = put(text, "parts", "times.py", list(part_lines(figures["parts"])))
    return put(text, "threads", "times.py", list(thread_lines(figures["threads"])))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--collect", action="store_true", help="write the tables of what was measured")
    path = HERE / "results.json"
    if not parser.parse_args().collect:
        keep_memory()
        torch.manual_seed(0)
        torch.set_num_threads(1)
        found = [compared(part) for part in parts()] + [memory()]
        figures = {"parts": found, "threads": [side_by_side(*pair) for pair in PAIRS]}
        with redirect_stdout(None):
            write(path, "benchmarks/parts/command.sh", figures)
    PAGE.write_text(page(PAGE.read_text(), json.loads(path.read_text())))


if __name__ == "__main__":
    main()
