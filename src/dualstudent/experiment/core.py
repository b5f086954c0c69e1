"""extract, resume, evaluate: a run from its first query to its result."""

import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dualstudent import engine, parallel
from dualstudent.data import Images
from dualstudent.errors import UserError
from dualstudent.evaluation import fidelity, fitting, logits
from dualstudent.experiment import folder as folders
from dualstudent.experiment.again import (
    as_opened,
    choose_device,
    facing,
    reopen,
    same_outside,
    same_target,
    saved_data,
    saved_method,
    weights_of,
)
from dualstudent.experiment.folder import RunFolder, alone
from dualstudent.experiment.paying import journal_for, purse, service
from dualstudent.experiment.probes import cadence
from dualstudent.experiment.recorder import Progress
from dualstudent.experiment.session import answers_on, go
from dualstudent.files import read_json, write_json
from dualstudent.ledger import Account
from dualstudent.methods import Method
from dualstudent.networks import Clone, load_student
from dualstudent.networks.store import student_folder
from dualstudent.numerics import AUTO, Numerics
from dualstudent.spec import Labels, Target
from dualstudent.targets import Opened, SecretNames, TargetOptions


class Run:
    """A finished run: its directory, its result and the extracted model."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.result = read_json(self.path / "result.json")

    @property
    def clone(self) -> Clone:
        """The extracted model in eval mode on the CPU: images in the target's bounds to logits."""
        return load_student(self.path)


def extract(
    method: Method[Any],
    target: Target | Opened,
    *,
    queries: int,
    labels: Labels = "soft",
    seed: int = 0,
    out: str | Path,
    data: Images | None = None,
    preset: str | None = None,
    device: str = "auto",
    numerics: Numerics = AUTO,
    overwrite: bool = False,
    target_options: TargetOptions | None = None,
    data_dir: str | Path | None = None,
    points: int = 20,
    snapshot_every: float = 20.0,
    tensorboard: bool = False,
    journal: bool | None = None,
    price: float | None = None,
    probe_every: int | None = None,
    command: list[str] | None = None,
    progress: Progress = lambda spent, last: None,
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Extract a target with exactly `queries` images and write the run to `out`.

    `labels` "hard" shows the method the target's top class only. `data` are images on which the
    owner judges the clone: the target's answers on them are charged to the audit, not the attack. Every
    `probe_every` queries the same few images are asked again, on the audit's account, to see whether the
    target is still the same (None: of a service, now and then; 0: never). `journal` says whether each
    answer is kept on disk before it is learnt, so that none is paid twice (None: a service's are).
    `price` of 1,000 images is told in the bill.
    Raises UserError on bad input, before the first query where it can be known; Stopped if `stop`
    says so (see `resume`).
    """
    opened = as_opened(target)
    device = choose_device(device)
    numerics = numerics.on(device)
    asked = facing(opened.target, labels)
    engine.check(method, asked.spec)
    engine.plan(method, [queries])
    if points < 1:
        raise UserError(f"--points {points}: at least 1")
    if price is not None and not 0 <= price < math.inf:
        raise UserError(f"--price {price}: of 1,000 images, 0 or more")
    if not snapshot_every >= 0:
        raise UserError(f"--snapshot-every {snapshot_every}: seconds, 0 or more")
    if data is not None:
        fitting(data, asked.spec)
    run, first = RunFolder(out), parallel.rank() == 0
    start = getattr(method, "start", None)
    if start is not None and Path(start).resolve().is_relative_to(run.path.resolve()):
        raise UserError(f"--start {start} lies in --out {out}, which would be replaced: choose another --out")
    if first:
        folders.vacant(run.path, overwrite)
    method.init(asked.spec)  # a bad architecture or shape ends here, before anything is written
    about: dict[str, Any] = {"reference": opened.reference, "name": opened.name, "sha256": opened.sha256}
    about |= {"files": opened.files, "weights": weights_of(opened.target)}
    if opened.service is not None:
        about["service"] = opened.service
    about |= {"options": _plain(target_options), "spec": asked.spec.to_json()}
    options = {
        "points": points,
        "snapshot_every": snapshot_every,
        "tensorboard": tensorboard,
        "threads": torch.get_num_threads(),
        "ranks": parallel.world(),
        "numerics": asdict(numerics),
        "data_dir": None if data_dir is None else str(Path(data_dir).absolute()),
        "journal": journal_for(asked, journal),
        "price": price,
        "probe_every": cadence(probe_every, opened.target, queries),
    }
    manifest = folders.describe(
        method,
        preset=preset,
        labels=labels,
        seed=seed,
        budgets=[queries],
        target=about,
        data=data,
        device=device,
        options=options,
        command=command,
    )
    with run.begun(manifest, overwrite=overwrite) if first else nullcontext():
        if first:
            _keep_start(run, method)
        parallel.meet()
        with purse(run, manifest, opened.target) as paid:
            go(run, manifest, method, opened.target, data, progress, stop, paid, insist=bool(probe_every))
    return Run(run.path)


@alone
def resume(
    path: str | Path,
    target: Target | Opened | None = None,
    *,
    queries: int | None = None,
    data: Images | None = None,
    place: str | None = None,
    secrets: SecretNames | None = None,
    probe_every: int | None = None,
    progress: Progress = lambda spent, last: None,
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Go on with a stopped run; with `queries`, extend a finished one to a larger budget.

    The target is opened again as the manifest says, unless given; `place` is where it lies now, `secrets`
    name those it needs: what a manifest names is not sent by itself. `probe_every` replaces the run's, if
    given. Nothing is written before the snapshot is read. Raises UserError, Stopped.
    """
    run = RunFolder(path)
    manifest = run.manifest()
    choose_device(manifest["device"])
    ranks = manifest.get("ranks", 1)
    if ranks != parallel.world():
        raise UserError(
            f"{path} was begun with {ranks} ranks, here are {parallel.world()}, which would draw other noise:"
            f" go on with torchrun --nproc-per-node {ranks} -m dualstudent resume {path}"
        )
    last = read_json(run.result) if run.result.exists() else {}
    done = last.get("complete") and last.get("budget") == manifest["budgets"][-1]
    if queries is not None and queries != manifest["budgets"][-1]:
        if not done:
            raise UserError(f"{path} is not finished: resume it first, then extend it")
        if queries < manifest["budgets"][-1]:
            raise UserError(f"--queries {queries}: the run has spent {manifest['budgets'][-1]} already")
        manifest["budgets"].append(queries)
    elif done:
        raise UserError(f"{path} is finished: give --queries M to extend it")
    with run.believing():
        method = saved_method(run, manifest)
        engine.plan(method, manifest["budgets"])
        same_outside(method, manifest)
        Numerics(**manifest.get("numerics", {}))
        opened = reopen(manifest, place, secrets) if target is None else as_opened(target)
        same_target(opened, manifest)
        if manifest["data"] is not None:
            data = saved_data(manifest, data)
    torch.set_num_threads(manifest["threads"])
    if probe_every is not None:
        manifest["probe_every"] = cadence(probe_every, opened.target, manifest["budgets"][-1])
    parallel.meet()  # all have read it
    with purse(run, manifest, opened.target) as paid:
        go(run, manifest, method, opened.target, data, progress, stop, paid, insist=bool(probe_every))
    return Run(run.path)


@alone
def evaluate(
    path: str | Path,
    data: Images,
    target: Target | Opened | None = None,
    *,
    place: str | None = None,
    secrets: SecretNames | None = None,
) -> dict[str, Any]:
    """Judge a run's clone on other test images and add the figures to its result.json.

    The target's answers are charged to the audit, once for each set of images. `place` and `secrets` are
    those of `resume`. Raises UserError.
    """
    run = RunFolder(path)
    manifest, result = run.manifest(), run.outcome()
    with run.believing():
        opened = reopen(manifest, place, secrets) if target is None else as_opened(target)
        same_target(opened, manifest)
    target = opened.target
    fitting(data, target.spec)
    Numerics(**manifest.get("numerics", {})).on(manifest["device"]).apply(manifest["device"])
    with purse(run, manifest, target) as paid:
        account = Account("audit", path=run.audit)
        answers = answers_on(run, target, data, account, paid)
        result["bill"] |= service(run, manifest, paid.journal)
    clone = load_student(run.path)
    each = logits(clone, data, target.spec)
    figures = fidelity(each, answers, data, access=target.spec.access, ids=clone.ids)
    about = {"data": data.name, "split": data.split, "images": len(data), "sha256": data.digest()}
    about["spent"] = result["spent"]  # an extension keeps the figures of the clone that it had
    others = [e for e in result.get("evaluations", []) if e["sha256"] != about["sha256"]]
    result["evaluations"] = [*others, about | figures]
    if result["accuracy"] is None:  # the run itself had no test images
        result |= figures
    write_json(run.result, result)
    return about | figures


def _keep_start(run: RunFolder, method: Method[Any]) -> None:
    """Copy the student that a run starts from, so that it can be resumed without its origin."""
    start = getattr(method, "start", None)
    if start is None:
        return
    origin = student_folder(start)
    run.start.mkdir()
    for name in ("student.json", "model.safetensors"):
        shutil.copyfile(origin / name, run.start / name)


def _plain(options: TargetOptions | None) -> dict[str, Any] | None:
    return None if options is None else options.to_json()
