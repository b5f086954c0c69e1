"""What a manifest names, opened again: target, test images, method."""

import logging
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from dualstudent import parallel
from dualstudent.data import Images, load_data
from dualstudent.defences import LabelOnly, bare
from dualstudent.errors import UserError, unknown
from dualstudent.experiment.folder import RunFolder, describe_images
from dualstudent.methods import Method, find
from dualstudent.methods.base import option
from dualstudent.spec import Access, Labels, Spec, Target
from dualstudent.targets import Opened, SecretNames, TargetOptions, open_target, weights_sum

log = logging.getLogger(__name__)


def as_opened(target: Target | Opened) -> Opened:
    """Return a Python object as an opened target. Raises UserError for what is none."""
    if isinstance(target, Opened):
        return target
    if isinstance(target, nn.Module) and target.training:
        raise UserError("the target is in training mode, asking would change it: call .eval() on it first")
    if not isinstance(target, Target):
        raise UserError(f"a {type(target).__name__} is no target: it needs .spec and must be callable")
    return Opened(target, None, type(target).__name__)


def weights_of(target: Target) -> str | None:
    """Return a digest of the network that a target is made of, None where it has none."""
    inner = bare(target)
    module = inner if isinstance(inner, nn.Module) else getattr(inner, "module", None)
    return weights_sum(module) if isinstance(module, nn.Module) else None


def same_target(opened: Opened, manifest: dict[str, Any]) -> None:
    """Raise UserError if a target is another one than a run began with, as far as can be known."""
    about = manifest["target"]
    began, now = Spec.from_json(about["spec"]), opened.target.spec
    if manifest["labels"] == "hard":
        now = replace(now, access=Access.LABEL)
    if began != now:
        names = [f.name for f in fields(Spec) if getattr(began, f.name) != getattr(now, f.name)]
        changed = ", ".join(f"{n} was {getattr(began, n)} and is {getattr(now, n)}" for n in names)
        raise UserError(f"the target is not the one that the run began with: {changed}")
    sums: list[tuple[Any, Any]] = [
        (about["sha256"], opened.sha256),
        (about.get("weights"), weights_of(opened.target)),
    ]
    if about.get("files") and opened.files:  # an ONNX model and its weights, whatever their names are now
        sums = [(sorted(about["files"].values()), sorted(opened.files.values()))]
    known = [(before, after) for before, after in sums if before is not None and after is not None]
    if known and known[0][0] != known[0][1]:
        what = "weights" if opened.service is None else "metadata, version or template"
        raise UserError(f"{opened.name} holds another target than the run began with (other {what})")


def same_outside(method: Method[Any], manifest: dict[str, Any]) -> None:
    """Raise UserError if the images of others that a method asks are not those the run began with."""
    began = manifest.get("outside")
    now = method.outside(Spec.from_json(manifest["target"]["spec"]))
    if (None if now is None else describe_images(now)) != began:
        raise UserError(f"{getattr(now, 'name', 'the proxy')} holds other images than the run began with")


def facing(target: Target, labels: Labels) -> Target:
    """Return the target as the attacker sees it. Raises UserError for soft labels it does not give."""
    if labels not in get_args(Labels):
        raise unknown("labels", labels, get_args(Labels))
    if labels == "hard":
        return target if target.spec.access == Access.LABEL else LabelOnly(target)
    if target.spec.access != Access.PROBS:
        raise UserError(
            f"--labels soft: the target reveals {target.spec.access.name} only; use --labels hard"
        )
    if target.spec.classes is None:
        raise UserError("--labels soft: an unknown number of classes needs --labels hard")
    return target


def going_on(
    path: str | Path, target: Target | None = None, said: SecretNames | None = None, place: str | None = None
) -> str:
    """Return the command that goes on with a run: with the secrets that its target, or `said`, names."""
    service = None if target is None else bare(target)
    names = said or getattr(service, "secrets", None) or SecretNames()
    moved = [] if place is None else ["--target", place]
    return shlex.join(["dualstudent", "resume", str(path), *moved, *names.flags])


def reopen(manifest: dict[str, Any], place: str | None = None, secrets: SecretNames | None = None) -> Opened:
    """Open the target of a manifest again, from `place` if it has moved.

    Secrets that the manifest names have to be named again in `secrets`. Raises UserError.
    """
    about = manifest["target"]
    if about["reference"] is None and place is None:
        raise UserError("the run's target was a Python object: resume it from Python and give the target")
    options, where = TargetOptions.from_json(about["options"] or {}), place or about["reference"]
    options = replace(options, service=options.service.with_secrets(secrets or SecretNames(), str(where)))
    return open_target(where, options, device=choose_device(manifest["device"]))


def saved_data(manifest: dict[str, Any], data: Images | None = None) -> Images:
    """Load the test images of a manifest again, unless given. Raises UserError if they are others."""
    about = manifest["data"]
    if data is None:
        data = load_data(about["name"], about["split"], folder=manifest["data_dir"])
    if data.digest() != about["sha256"]:
        raise UserError(f"{about['name']} has other images than the run began with")
    return data


def saved_method(run: RunFolder, manifest: dict[str, Any]) -> Method[Any]:
    """Return a manifest's method; warns of options that it lacks. Raises UserError on others that it has."""
    recipe = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["recipe"].items()}
    try:
        method = find(manifest["method"])(**recipe)
    except TypeError as error:
        raise UserError(f"{run.manifest_file} holds another version's recipe: {error}") from error
    later = [f"{option(f.name)} {getattr(method, f.name)}" for f in fields(method) if f.name not in recipe]
    if later and parallel.rank() == 0:
        log.warning("%s, begun before these options came, goes on with: %s", run.path, ", ".join(later))
    if run.start.is_dir():
        method = replace(method, start=str(run.start))  # type: ignore[call-arg]
    return method


def choose_device(device: str) -> str:
    """Return a usable device: "auto" is the GPU if there is one, each rank's own. Raises UserError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        parallel.settle(device)
        return device
    try:
        parallel.settle(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


def device_of(path: str | Path) -> str:
    """Return the device of a run, as far as it is usable here. Raises UserError."""
    return choose_device(RunFolder(path).manifest()["device"])


def told_threads(path: str | Path) -> bool:
    """Return whether the command that began a run said how many threads. Raises UserError."""
    words = RunFolder(path).manifest().get("command") or []
    return any(str(word).partition("=")[0] == "--threads" for word in words)


def budget(path: str | Path) -> int:
    """Return the budget of a run. Raises UserError where there is none."""
    return int(RunFolder(path).manifest()["budgets"][-1])
