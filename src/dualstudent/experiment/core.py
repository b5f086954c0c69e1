"""extract, resume, evaluate: a run from its first query to its result."""

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualstudent import engine, parallel
from dualstudent.checkpoint import Snapshots
from dualstudent.data import Images
from dualstudent.defences import bare
from dualstudent.errors import Diverged, Stopped, TargetError, UserError
from dualstudent.evaluation import ask, fidelity, fitting, logits
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
from dualstudent.experiment.folder import RunFolder
from dualstudent.experiment.paying import Purse, journal_for, purse, service
from dualstudent.experiment.probes import Probes, cadence
from dualstudent.experiment.recorder import Progress, Recorder
from dualstudent.experiment.result import compose
from dualstudent.files import read_json, read_tensors, write_json, write_tensors
from dualstudent.ledger import Account, Shown
from dualstudent.methods import Method
from dualstudent.methods.base import option
from dualstudent.networks import Clone, load_student, save_student
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
    if first:
        run.create(manifest, overwrite=overwrite)
        _keep_start(run, method)
    parallel.meet()
    with purse(run, manifest, opened.target) as paid:
        return _go(run, manifest, method, opened.target, data, progress, stop, paid, insist=bool(probe_every))


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
        return _go(run, manifest, method, opened.target, data, progress, stop, paid, insist=bool(probe_every))


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
    with purse(run, manifest, target) as paid:
        account = Account("audit", path=run.audit)
        answers = _answers(run, target, data, account, paid)
        images = result["bill"].get("asked", 0) + account.asked
        result["bill"] |= {"audit": account.asked} | service(manifest, images, paid.journal)
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


def _go(
    run: RunFolder,
    manifest: dict[str, Any],
    method: Method[Any],
    target: Target,
    data: Images | None,
    progress: Progress,
    stop: Callable[[], bool],
    paid: Purse,
    *,
    insist: bool = False,
) -> Run:
    device, asked = manifest["device"], facing(target, manifest["labels"])
    first = parallel.rank() == 0  # it alone writes, and judges
    if (heed := getattr(bare(target), "heed", None)) is not None:
        heed(stop)
    attack = Account("attack", manifest["budgets"][-1], run.attack, writes=first, held=paid.held)
    shown = Shown(run.shown, writes=first)
    snapshots = Snapshots(run.snapshot, folders.identity(manifest), manifest["snapshot_every"])
    if not first:
        _follow(manifest, method, asked, attack, shown, snapshots, stop)
        return Run(run.path)
    audit = Account("audit", path=run.audit)
    data = None if data is None else data.to(device)
    answers = None if data is None else _answers(run, target, data, audit, paid).to(device)
    board = _board(run.path) if manifest["tensorboard"] else None
    numerics = Numerics(**manifest.get("numerics", {}))
    phases = engine.plan(method, manifest["budgets"])
    planned = sum(phase.steps * phase.cost for phase in phases)
    outcome = partial(compose, run, manifest, attack, audit, shown, planned=planned, journal=paid.journal)
    recorder = Recorder(
        run,
        asked.spec,
        data,
        answers,
        target.spec.access,
        phases=phases,
        points=manifest["points"],
        numerics=numerics,
        progress=progress,
        stop=stop,
        board=board,
    )
    probes = Probes(run, target, audit, manifest.get("probe_every", 0), planned)
    finished = read_json(run.result) if run.result.exists() else {}

    def resumed(step: int, state: Any) -> None:
        recorder.rewind(step, state)
        if not probes.begin(attack.spent, insist=insist):
            manifest["probe_every"] = 0
        write_json(run.manifest_file, manifest)  # an extension is one once all it builds on was read

    def flush() -> None:
        shown.flush()
        recorder.flush()

    def watch(moment: engine.Moment[Any]) -> bool:
        stops = recorder(moment)
        return probes(moment.spent) or stops

    snapshots.flush = flush
    try:
        state = engine.run(
            method,
            asked,
            attack,
            budgets=manifest["budgets"],
            seed=manifest["seed"],
            device=device,
            numerics=numerics,
            shown=shown,
            snapshots=snapshots,
            watch=watch,
            resumed=resumed,
            desk=paid.attack(asked),
        )
        if probes.trouble is not None:
            raise TargetError(probes.trouble)
        figures = None if data is None else recorder.figures(state)
    except Stopped:
        if not finished.get("complete"):  # an extension that is stopped keeps the result that it had
            values = outcome(recorder, figures=None, probes=probes.asked)
            write_json(run.result, values | {"complete": False})  # steps that ask nothing may be left
        if probes.trouble is not None:
            raise TargetError(probes.trouble) from None
        raise
    except Diverged as error:
        rates = ", ".join(option(name) for name in asdict(method) if "rate" in name)
        raise UserError(f"{error}: lower {rates or 'the learning rates'}") from error
    finally:
        if board is not None:
            board.close()
    save_student(run.student, state.clone, spec=asked.spec, seed=manifest["seed"])
    values = outcome(recorder, figures=figures, probes=probes.asked)
    if finished.get("evaluations"):
        values["evaluations"] = finished["evaluations"]
    write_json(run.result, values)
    parallel.meet()
    return Run(run.path)


def _follow(
    manifest: dict[str, Any],
    method: Method[Any],
    asked: Target,
    attack: Account,
    shown: Shown,
    snapshots: Snapshots,
    stop: Callable[[], bool],
) -> None:
    """Do the work of a rank that writes nothing, until the first one has written the result."""
    engine.run(
        method,
        asked,
        attack,
        budgets=manifest["budgets"],
        seed=manifest["seed"],
        device=manifest["device"],
        numerics=Numerics(**manifest.get("numerics", {})),
        shown=shown,
        snapshots=snapshots,
        watch=lambda moment: stop(),
    )
    parallel.meet()


def _answers(run: RunFolder, target: Target, data: Images, account: Account, paid: Purse) -> Tensor:
    """Return the target's answers on test images, asked once in the life of a run."""
    path = run.answers / f"{data.digest()[:16]}.safetensors"
    if path.exists():
        try:
            return read_tensors(path)["answers"]
        except (UserError, KeyError) as error:
            raise UserError(f"{path} is damaged: delete it, and the target is asked again (audit)") from error
    answers = ask(target, data, account, paid.audit(data)).cpu()
    write_tensors(path, {"answers": answers})
    return answers


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


def _board(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, RuntimeError) as error:
        raise UserError("--tensorboard needs: pip install 'dualstudent[tensorboard]'") from error
    return SummaryWriter(str(path / "tensorboard"))
