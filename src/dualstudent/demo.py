"""The demo: train a small target, copy it by our method and by the paper's, draw the report."""

import multiprocessing
import queue
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dualstudent.data import load_data
from dualstudent.errors import Stopped, UserError
from dualstudent.experiment import Run, extract
from dualstudent.machine import keep_memory
from dualstudent.methods import DualStudent, Frugal, Method
from dualstudent.report import render
from dualstudent.spec import Labels
from dualstudent.targets import open_target, train_target
from dualstudent.threads import cores, side_by_side


@dataclass(frozen=True)
class Copy:
    """A copy that the demo makes."""

    method: type[Method[Any]]
    preset: str
    labels: Labels
    times: int  # its queries, in units of the demo's budget


COPIES = {
    "soft": Copy(Frugal, "quick", "soft", 1),
    "hard": Copy(Frugal, "quick", "hard", 1),
    "paper": Copy(DualStudent, "paper", "soft", 10),
}
LEARNING = {f"{name}, learning": "steps" for name in COPIES}  # bars of what comes after the last query
Update = Callable[[str, int, int, str], None]  # name, done, total, note


def demo(
    out: Path, *, seed: int, queries: int, overwrite: bool, update: Update
) -> tuple[Path, list[tuple[str, dict[str, Any]]]]:
    """Run the demo into `out`; returns the report's path and each copy's result.

    `queries` is the budget of our own method; the paper's gets ten times as many. The copies are made
    side by side, in a process of one thread each: networks this small are slower with two. Raises
    UserError.
    """
    places = [out / name for name in ("target", *COPIES, "report.html")]
    if not overwrite and any(place.exists() for place in places):
        raise UserError(f"{out} holds an earlier demo: choose another --out, or say --overwrite")
    torch.set_num_threads(1)
    train_target(
        "digits",
        "digits-cnn",
        out / "target",
        seed=seed,
        overwrite=overwrite,
        progress=lambda done, total, text: update("target", done, total, text),
    )
    copy_all(out, seed, queries, update)
    page = out / "report.html"
    render([out / name for name in COPIES], page, title="dualstudent demo: copying a digit classifier")
    return page, [(name, Run(out / name).result) for name in COPIES]


def copy_all(out: Path, seed: int, queries: int, update: Update) -> None:
    """Make all copies in processes of their own. Raises UserError with what stopped one."""
    context = multiprocessing.get_context("spawn")
    news: Any = context.Queue()
    workers = {
        name: context.Process(target=_copy, args=(out, name, seed, queries, news), daemon=True)
        for name in COPIES
    }
    for worker in workers.values():
        worker.start()
    try:
        while workers:
            try:
                name, at, done, total, text, error = news.get(timeout=1)
            except queue.Empty:
                dead = [name for name, worker in workers.items() if worker.exitcode not in (None, 0)]
                if dead:
                    raise UserError(f"the process of copy '{dead[0]}' died: is there memory left?") from None
                continue
            if error is not None:
                raise UserError(error)
            if at == "":
                workers.pop(name).join()
            else:
                update(at, done, total, text)
    finally:
        for worker in workers.values():
            worker.terminate()


def _copy(out: Path, name: str, seed: int, queries: int, news: Any) -> None:
    """Make one copy; tells how far it is, at most five times a second."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    parent = multiprocessing.parent_process()
    keep_memory()
    torch.set_num_threads(1)
    side_by_side(max(1, cores() // len(COPIES)))
    copy = COPIES[name]
    budget, said = queries * copy.times, 0.0

    def progress(spent: int, last: dict[str, Any]) -> None:
        nonlocal said
        if last["step"] < last["steps"] and time.monotonic() - said <= 0.2:
            return
        said = time.monotonic()
        agreement = last.get("agreement")
        text = "" if agreement is None else f"agreement {agreement:.3f}"
        news.put((name, name, spent, budget, text, None))
        if spent == budget and copy.method is Frugal:
            news.put((name, f"{name}, learning", last["step"], last["steps"], text, None))

    try:
        extract(
            copy.method.preset(copy.preset),
            open_target(str(out / "target")),
            queries=budget,
            labels=copy.labels,
            seed=seed,
            out=out / name,
            data=load_data("digits"),
            preset=copy.preset,
            device="cpu",
            overwrite=True,
            progress=progress,
            stop=lambda: parent is not None and not parent.is_alive(),
            command=["dualstudent", "demo", "--out", str(out), "--seed", str(seed)],
        )
        news.put((name, "", 0, 0, "", None))
    except UserError as error:
        news.put((name, "", 0, 0, "", f"copy '{name}': {error}"))
    except Stopped:  # nobody is left to be told
        news.cancel_join_thread()
