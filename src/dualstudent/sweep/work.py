"""Work on the cells of a sweep: some at once, through submitit, on this machine or under Slurm."""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from dualstudent.data import known_as, load_data
from dualstudent.errors import Stopped, UserError
from dualstudent.experiment import choose_device, extract, resume
from dualstudent.files import read_json
from dualstudent.machine import keep_memory
from dualstudent.numerics import Numerics
from dualstudent.sweep import gpus
from dualstudent.sweep.goals import another, prepare, trained_otherwise, untrained
from dualstudent.sweep.matrix import Cell, Goal, Sweep
from dualstudent.targets import TargetOptions, open_target
from dualstudent.threads import cores, side_by_side

State = Literal["done", "stopped", "open", "n/a"]
DAY = 24 * 60  # minutes that Slurm is asked for unless told; submitit would ask for five
FOREVER = 365 * DAY  # of a local job
STDERR = 2  # as processes number it
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
CONTROLLERS = "controllers.err"  # among the logs: what submitit's own processes say
Tell = Callable[[str, str], None]  # cell, what became of it


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep: failed cells with their logs, and whether it was stopped on request."""

    failed: dict[str, Path]
    stopped: bool


class _Refused:
    """A job that was not taken; its log is the folder of logs."""

    def __init__(self, reason: str, logs: Path) -> None:
        self.reason, self.paths = reason, SimpleNamespace(stderr=logs)

    def done(self) -> bool:
        return True

    def result(self) -> None:
        raise UserError(self.reason)

    def cancel(self, check: bool) -> None:
        """There is nothing to end."""


def state(cell: Cell) -> State:
    """Return how far a cell is. Raises UserError where its folder holds a run with another recipe."""
    if not cell.possible:
        return "n/a"
    folder = Path(cell.path)
    if not (folder / "manifest.json").is_file():
        return "open"
    manifest = read_json(folder / "manifest.json")
    mine = {"labels": cell.labels, "seed": cell.seed, "budgets": [cell.budget]}
    changed = [name for name, value in mine.items() if manifest.get(name) != value]
    if _placeless(manifest["recipe"]) != _placeless(cell.recipe):
        changed.insert(0, "recipe")
    if _plain(manifest["target"]["options"]) != _plain(cell.target.options):
        changed.append("target options")
    judged = manifest["data"] or {"split": cell.target.split, "name": None}
    if judged["split"] != cell.target.split:
        changed.append("split")
    if cell.target.data is not None and judged["name"] != known_as(cell.target.data):
        changed.append("data")
    if manifest["numerics"]["precision"] != Numerics(cell.precision).on(manifest["device"]).precision:
        changed.append("precision")
    if another(cell.target, manifest["target"]) or trained_otherwise(cell.target):
        changed.append("target")
    if changed:
        raise UserError(
            f"{folder} was run with another {' and '.join(changed)}: give the sweep another 'out' or name"
        )
    result = read_json(folder / "result.json") if (folder / "result.json").is_file() else {}
    if result.get("complete"):
        return "done"
    kept = any((folder / name).is_file() for name in ("snapshot.pt", "snapshot.previous.pt"))
    return "stopped" if kept else "open"


def _plain(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is known of a target as JSON has it, an older version's defaults included."""
    whole: dict[str, Any] = json.loads(json.dumps(TargetOptions.from_json(options or {}).to_json()))
    return whole


def _placeless(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe whose start is named within its sweep, wherever that lies."""
    start = recipe.get("start")
    return {**recipe, "start": start and Path(start).parts[-5:]}


def work(
    values: Mapping[str, Any],
    stop: Callable[[], bool] = lambda: False,
    *,
    gpu: str | None = None,
    most: int | None = 1,
) -> None:
    """Do one cell, in a process of its own: begin it, or go on where it stopped. Raises Stopped.

    `gpu` is the one it sees, in a process that has not asked CUDA for any; None: all. Light students learn
    side by side, `most` at once; None: one on each core that the process may use.
    """
    import torch

    gpus.take(gpu)
    cell = Cell(**{**values, "target": Goal(**values["target"])})
    keep_memory()
    torch.set_num_threads(cell.threads)
    side_by_side(most)
    if state(cell) == "stopped":
        resume(cell.path, place=cell.target.path, stop=stop)
        return
    options, device = cell.seen_as(), choose_device("auto")
    opened = open_target(cell.target.path, options, device=device)
    data, known = None, cell.target.data or opened.data
    if known is not None:
        data = load_data(known, cell.target.split, folder=cell.data_dir)
    extract(
        cell.build(),
        opened,
        queries=cell.budget,
        labels=cell.labels,
        seed=cell.seed,
        out=cell.path,
        data=data,
        preset=cell.preset,
        overwrite=True,  # what is there has no snapshot yet
        numerics=Numerics(cell.precision),
        target_options=options,
        data_dir=cell.data_dir,
        points=cell.points,
        stop=stop,
    )


def start(
    sweep: Sweep,
    *,
    jobs: int | None = None,
    slurm: Mapping[str, str] | None = None,
    tell: Tell = lambda cell, news: None,
    finished: Callable[[], object] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Do all cells that are not done, `jobs` at once; a failed one does not stop the rest.

    Without `jobs`: one a GPU or, where there is none, for as many cores as a cell has threads; under Slurm
    all. Raises UserError before anything runs: for a changed recipe, a missing target, missing data, submitit
    or Slurm, a precision that this machine lacks.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least 1")
    todo = [cell for cell in sweep.cells if state(cell) in ("open", "stopped")]
    executor = _executor(sweep.out / "logs", slurm)
    here = gpus.visible() if slurm is None else []  # Slurm gives its own
    threads = max((cell.threads for cell in todo), default=1)
    most = jobs or (len(here) or max(1, cores() // threads) if slurm is None else len(todo))
    each = max(1, cores() // max(1, min(most, len(todo)))) if slurm is None else None
    for cell in todo if slurm is None else []:
        Numerics(cell.precision).on(choose_device("auto"))
    goals = list({cell.target.name: (cell.target, cell.data_dir) for cell in todo}.values())
    for goal, data_dir in goals:
        untrained(goal, data_dir)
    try:
        for goal, data_dir in goals:
            prepare(goal, data_dir, stop)
    except Stopped:
        return Outcome({}, True)
    for cell in todo:
        state(cell)  # now that its target is there
    running: dict[str, tuple[Any, str | None]] = {}  # jobs, and the GPUs that they have
    failed: dict[str, Path] = {}
    queue, unended = list(todo), {cell.path for cell in todo}
    while queue or running:
        if stop():
            for job, _ in running.values():
                job.cancel(check=False)
            return Outcome(failed, True)
        while len(running) < most and (ready := _next(queue, unended)) is not None:
            queue.remove(ready)
            gpu = gpus.freest(here, (taken for _, taken in running.values()))
            running[ready.name] = _submitted(executor, ready, gpu, each, sweep.out / "logs"), gpu
            tell(ready.name, "begun")
        for name, (job, _) in list(running.items()):
            if not job.done():
                continue
            del running[name]
            unended -= {cell.path for cell in todo if cell.name == name}
            reason = _reason(job)
            if reason is None:
                tell(name, "done")
            else:
                failed[name] = Path(str(job.paths.stderr))
                tell(name, f"failed: {reason}")
            finished()
        time.sleep(0.2)
    return Outcome(failed, False)


def _submitted(executor: Any, cell: Cell, gpu: str | None, each: int | None, logs: Path) -> Any:
    """Return a cell's job; one that has failed already where Slurm refuses it."""
    try:
        with _erring_into(logs / CONTROLLERS):
            return executor.submit(work, asdict(cell), gpu=gpu, most=each)
    except (RuntimeError, OSError) as error:  # sbatch's own words, or there is none
        return _Refused(f"not submitted: {str(error) or type(error).__name__}", logs)


@contextlib.contextmanager
def _erring_into(log: Path) -> Iterator[None]:
    """Let processes that are started here write their errors, a trace on Ctrl-C for one, into a file."""
    try:
        terminal = os.dup(STDERR)
    except OSError:  # it is closed: nobody reads it
        yield
        return
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), STDERR)
        yield
    finally:
        os.dup2(terminal, STDERR)
        os.close(terminal)


def _next(queue: list[Cell], unended: Collection[str]) -> Cell | None:
    """Return the first cell that waits for no other: for the run that it starts from, that is."""
    return next((cell for cell in queue if cell.start not in unended), None)


def _reason(job: Any) -> str | None:
    """Return why a job failed, in a line, or None if it did not."""
    try:
        job.result()
    except Stopped as stopped:
        return str(stopped)
    except Exception as error:  # whatever a worker raised, or its death
        parts = str(error).split("-" * 22)  # submitit: the trace between two rules, then where the logs lie
        lines = [line.strip() for line in parts[len(parts) // 2].splitlines() if line.strip()]
        return re.sub(r"^dualstudent\.errors\.\w+: ", "", lines[-1]) if lines else type(error).__name__
    return None


def _executor(logs: Path, slurm: Mapping[str, str] | None) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError("'sweep' needs: pip install 'dualstudent[sweep]'") from error
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {logs}: {error.strerror}") from error
    try:
        executor = submitit.AutoExecutor(str(logs), cluster="local" if slurm is None else "slurm")
    except RuntimeError as error:  # submitit looks for srun
        raise UserError("--slurm: no Slurm here (no 'srun'): say it where jobs are submitted") from error
    executor.update_parameters(timeout_min=FOREVER if slurm is None else DAY)
    for key, text in (slurm or {}).items():
        value: str | int = int(text) if text.isdigit() else text
        with _one_line(key):
            executor.update_parameters(**{key if key in SHARED else f"slurm_{key}": value})
    return executor


@contextlib.contextmanager
def _one_line(key: str) -> Any:
    try:
        yield
    except Exception as error:  # submitit names what it does not know in many ways
        raise UserError(f"--slurm {key}: {str(error).splitlines()[0]}") from error


def parse_slurm(text: str) -> dict[str, str]:
    """Return the parameters of partition=gpu,timeout_min=600. Raises UserError."""
    found = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not (equals and key.strip() and value.strip()):
            raise UserError(
                f"--slurm '{text}': write key=value,key=value, as in partition=gpu,timeout_min=600"
            )
        found[key.strip()] = value.strip()
    return found
