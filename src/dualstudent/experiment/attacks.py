"""What transfers from a run's clone as an attack on its target: transfer.json beside the run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dualstudent import parallel, priors
from dualstudent.data import Images
from dualstudent.defences import bare
from dualstudent.errors import UserError
from dualstudent.evaluation import fitting
from dualstudent.evaluation.transfer import Attack, better_student, transfer
from dualstudent.experiment.again import reopen, same_target
from dualstudent.experiment.folder import RunFolder, alone, describe_images
from dualstudent.experiment.paying import price, purse, service
from dualstudent.files import write_json
from dualstudent.ledger import Account
from dualstudent.networks import load_student
from dualstudent.spec import Spec, Target
from dualstudent.targets import ModuleTarget, SecretNames, TargetOptions, open_target

HELD_BACK = 500  # images asked to choose the student that attacks
SEED = 0


@alone
def attack_run(
    path: str | Path,
    data: Images,
    attacks: Sequence[Attack],
    *,
    images: int | None = None,
    same_data: str | None = None,
    place: str | None = None,
    secrets: SecretNames | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Attack a run's target with images made on its better student, and write transfer.json.

    With `images`, so many of the data, drawn at random with a fixed seed. Beside the student: the target
    itself, where its network can be seen, and with `same_data` a target folder trained on the same
    data. The student is chosen on procedural images that no student learnt, never on test images. All
    that is asked is charged to an account of its own, in the run; what its journal holds is not asked again.
    Raises UserError.
    """
    run = RunFolder(path)
    manifest, result = run.manifest(), run.outcome()
    with run.believing():
        opened = reopen({**manifest, "device": device}, place, secrets)
        same_target(opened, manifest)
    target, clone = opened.target, load_student(run.path).to(device)
    data = _some(fitting(data, target.spec), images)
    if clone.ids is not None:
        raise UserError(f"{path} was made without knowing the classes: transfer attacks need them")
    parallel.seed_step(SEED, 0, 0)
    held = priors.procedural(HELD_BACK, target.spec.shape)
    other = None if same_data is None else _other(same_data, target.spec, manifest, device)
    with purse(run, manifest, target) as paid:
        account = Account("transfer", path=run.transfer)
        before = account.asked
        best = better_student(clone.students, target, held, account, paid.transfer)
        proxies: dict[str, nn.Module] = {"clone": clone.students[best]}
        if other is not None:
            proxies["same data"] = other
        own = _white_box(target)
        if own is not None:
            proxies["the target itself"] = own
        rows = transfer(attacks, proxies, target, data, account, progress, paid.transfer)
        result["bill"] |= service(run, manifest, paid.journal)
    found = {
        "schema_version": 1,
        "data": describe_images(data) | {"drawn": "at random, seed 0" if images else "all"},
        "student": {"index": best, "of": len(clone.students), "chosen_on": HELD_BACK},
        "asked": account.asked - before,
        "asked_in_all": account.asked,  # by earlier calls too
        "price": price(manifest, account.asked),
        "rows": rows,
    }
    write_json(run.path / "transfer.json", found)
    write_json(run.result, result)
    return found


def _some(data: Images, images: int | None) -> Images:
    """Return some images, whatever their order: folders come class by class. Raises UserError."""
    if images is None:
        return data
    if images < 1:
        raise UserError(f"--images {images}: at least 1")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(SEED))
    return data[order[:images]]


def _white_box(target: Target) -> nn.Module | None:
    inner = bare(target)
    return inner.white_box() if isinstance(inner, ModuleTarget) else None


def _other(folder: str, spec: Spec, manifest: dict[str, Any], device: str) -> nn.Module:
    """Return a model trained on the same data, for the same inputs. Raises UserError."""
    options = manifest["target"]["options"] or {}
    other = open_target(folder, TargetOptions(space=options.get("space", "pixels")), device=device).target
    for what in ("shape", "bounds", "classes"):
        if getattr(other.spec, what) != getattr(spec, what):
            mine = getattr(spec, what)
            raise UserError(f"--same-data {folder} has {what} {getattr(other.spec, what)}, the target {mine}")
    network = _white_box(other)
    if network is None:
        raise UserError(f"--same-data {folder} gives no logits")
    return network


def sweep_over(
    kinds: Sequence[str], eps: Sequence[float], *, step: float, iterations: int, restarts: int
) -> list[Attack]:
    """Return the attacks of each kind, untargeted and targeted, at each eps. Raises UserError."""
    return [
        Attack(kind, size, targeted, step, iterations, restarts)  # type: ignore[arg-type]
        for kind in kinds
        for targeted in (False, True)
        for size in eps
    ]
