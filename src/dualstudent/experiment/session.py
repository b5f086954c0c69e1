"""One session of a run: from where it is to its result, or to where it is stopped."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dualstudent import engine, parallel
from dualstudent.checkpoint import Snapshots
from dualstudent.data import Images
from dualstudent.defences import bare
from dualstudent.errors import Diverged, Stopped, TargetError, UserError
from dualstudent.evaluation import ask
from dualstudent.experiment import folder as folders
from dualstudent.experiment.again import facing
from dualstudent.experiment.folder import RunFolder
from dualstudent.experiment.paying import Purse
from dualstudent.experiment.probes import Probes
from dualstudent.experiment.recorder import Progress, Recorder
from dualstudent.experiment.result import compose
from dualstudent.files import read_json, read_tensors, write_json, write_tensors
from dualstudent.ledger import Account, Shown
from dualstudent.methods import Method
from dualstudent.methods.base import option
from dualstudent.networks import save_student
from dualstudent.numerics import Numerics
from dualstudent.spec import Target


def go(
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
) -> None:
    """Do what is left of a run and write its result; with `insist`, probes have to be possible.

    Raises UserError, TargetError; Stopped, with the state saved, if `stop` says so.
    """
    device, asked = manifest["device"], facing(target, manifest["labels"])
    numerics = Numerics(**manifest.get("numerics", {})).on(device)
    numerics.apply(device)  # who judges asks the target as exactly as who attacks
    first = parallel.rank() == 0  # it alone writes, and judges
    if (heed := getattr(bare(target), "heed", None)) is not None:
        heed(stop)
    attack = Account("attack", manifest["budgets"][-1], run.attack, writes=first, held=paid.held)
    shown = Shown(run.shown, writes=first)
    snapshots = Snapshots(run.snapshot, folders.identity(manifest), manifest["snapshot_every"])
    if not first:
        _follow(manifest, method, asked, attack, shown, snapshots, stop, numerics)
        return
    audit = Account("audit", path=run.audit)
    data = None if data is None else data.to(device)
    answers = None if data is None else answers_on(run, target, data, audit, paid).to(device)
    board = _board(run.path) if manifest["tensorboard"] else None
    phases = engine.plan(method, manifest["budgets"])
    planned = sum(phase.steps * phase.cost for phase in phases)
    outcome = partial(compose, run, manifest, attack, shown, planned=planned, journal=paid.journal)
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


def _follow(
    manifest: dict[str, Any],
    method: Method[Any],
    asked: Target,
    attack: Account,
    shown: Shown,
    snapshots: Snapshots,
    stop: Callable[[], bool],
    numerics: Numerics,
) -> None:
    """Do the work of a rank that writes nothing, until the first one has written the result."""
    engine.run(
        method,
        asked,
        attack,
        budgets=manifest["budgets"],
        seed=manifest["seed"],
        device=manifest["device"],
        numerics=numerics,
        shown=shown,
        snapshots=snapshots,
        watch=lambda moment: stop(),
    )
    parallel.meet()


def answers_on(run: RunFolder, target: Target, data: Images, account: Account, paid: Purse) -> Tensor:
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


def _board(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, RuntimeError) as error:
        raise UserError("--tensorboard needs: pip install 'dualstudent[tensorboard]'") from error
    return SummaryWriter(str(path / "tensorboard"))
