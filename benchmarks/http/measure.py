"""Images a second through oracle, client and server, and a run's time outside waiting and training."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from summary import write
from torch import Tensor

import dualstudent as ds
from dualstudent import engine
from dualstudent.desk import Desk
from dualstudent.journal import Journal
from dualstudent.ledger import Account, Shown
from dualstudent.methods import DualStudent
from dualstudent.oracle import Oracle
from dualstudent.targets import ServiceOptions, TargetOptions, open_target

HERE = Path(__file__).parent
SHAPE = ["--shape", "3", "32", "32", "--classes", "10"]


@contextmanager
def serving() -> Iterator[str]:
    """Serve the model in a process of its own, with a request log; give its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dualstudent", "serve", "torch:served:linear", *SHAPE]
        command += ["--port", "0", "--threads", "1", "--log", f"{folder}/log"]
        paths = os.pathsep.join([str(HERE), *sys.path])
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
        ) as server:
            assert server.stdout is not None
            try:
                yield next(word for word in server.stdout.readline().split() if word.startswith("http"))
            finally:
                server.terminate()


def spread(values: list[float]) -> dict[str, Any]:
    """Return n, median, least and most."""
    return {"n": len(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def throughput(url: str, repeats: int, images: int, folder: Path) -> dict[str, Any]:
    """Return images a second by kind of tensor: charged on disk, asked, verified, noted."""
    found: dict[str, Any] = {}
    for kind, part in (("binary", 1.0), ("binary, journal", 1.0), ("json", 0.05)):
        options = ServiceOptions(binary=kind != "json", request_batch=128, concurrency=2)
        target = open_target(url, TargetOptions(service=options)).target
        place = folder / kind.replace(", ", "-")
        place.mkdir()
        with ExitStack() as stack:
            desk = None
            if "journal" in kind:
                desk = Desk(stack.enter_context(Journal(place / "journal", "benchmark")), target)
            account, shown = Account("attack", path=place / "account"), Shown(place / "shown")
            oracle = Oracle(target, account, shown, None, desk)
            oracle(torch.rand(1280, 3, 32, 32))
            count = max(1, round(images * part / 1280))
            found[kind] = {"images": count * 1280} | spread([rate(oracle, count) for _ in range(repeats)])
    return found


def rate(oracle: Oracle, questions: int) -> float:
    """Return the images a second of some questions of fresh images."""
    x = [torch.rand(1280, 3, 32, 32) for _ in range(questions)]
    start = time.perf_counter()
    for batch in x:
        oracle(batch)
    return questions * 1280 / (time.perf_counter() - start)


class Timed(Oracle):
    """An oracle that knows how long it held the run up."""

    spent = 0.0

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        begin = self._begin

        def timed(batches: Sequence[Tensor]) -> Iterator[Tensor]:
            start = time.perf_counter()
            answers = begin(batches)
            Timed.spent += time.perf_counter() - start
            return self._iterate(answers)

        self._begin = timed

    def _iterate(self, answers: Iterator[Tensor]) -> Iterator[Tensor]:
        while True:
            start = time.perf_counter()
            answer = next(answers, None)
            Timed.spent += time.perf_counter() - start
            if answer is None:
                return
            yield answer


def outside(url: str, queries: int, folder: Path) -> dict[str, Any]:
    """Return the seconds of one whole run: waiting, training, and the rest."""
    steps = [0.0]
    plan = engine.plan

    def timed_plan(*parts: Any) -> list[Any]:
        def timing(step: Any) -> Any:
            def run(*state: Any) -> Any:
                start = time.perf_counter()
                try:
                    return step(*state)
                finally:
                    steps[0] += time.perf_counter() - start

            return run

        from dataclasses import replace

        return [replace(phase, step=timing(phase.step)) for phase in plan(*parts)]

    Timed.spent = 0.0
    engine.plan, engine.Oracle = timed_plan, Timed  # type: ignore[attr-defined]
    opened = open_target(url, TargetOptions(service=ServiceOptions(request_batch=64)))
    start = time.perf_counter()
    method = DualStudent.preset("small")
    run = ds.extract(
        method, opened, queries=queries, out=folder / "run", overwrite=True, command=["benchmark"]
    )
    wall = time.perf_counter() - start
    waiting = run.result["bill"]["waiting_s"]  # of the run, not of the thread that keeps the journal
    training = steps[0] - Timed.spent
    share = 1 - (waiting + training) / wall
    return {"wall_s": wall, "waiting_s": waiting, "training_s": training, "share_outside": share}


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=25_600)
    parser.add_argument("--queries", type=int, default=40_960)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, serving() as url:
        folder = Path(place)
        rates = throughput(url, words.repeats, words.images, folder)
        outside(url, 320, folder / "warm")  # imports, first allocations
        runs = [outside(url, words.queries, folder / str(i)) for i in range(3)]
    shares = spread([run["share_outside"] for run in runs])
    figures = {
        "images_per_s": rates,
        "wanted": {"images_per_s": 5000, "share_outside": 0.05},
        "run": {
            "method": "dual-student, small",
            "queries": words.queries,
            "share_outside": shares,
            "each": runs,
        },
    }
    write(words.out, "benchmarks/http/command.sh", figures)


if __name__ == "__main__":
    main()
