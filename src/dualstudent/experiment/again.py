"""What a manifest names, opened again: target, test images, method."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dualstudent.data import Images, load_data
from dualstudent.errors import UserError
from dualstudent.experiment.folder import RunFolder
from dualstudent.methods import Method, find
from dualstudent.spec import Target
from dualstudent.targets import TargetOptions, open_target


def reopen(manifest: dict[str, Any]) -> Target:
    """Open the target of a manifest again. Raises UserError if it is another one by now."""
    about = manifest["target"]
    if about["reference"] is None:
        raise UserError("the run's target was a Python object: resume it from Python and give the target")
    options = dict(about["options"] or {})
    for name in ("shape", "bounds"):
        options[name] = None if options.get(name) is None else tuple(options[name])
    opened = open_target(about["reference"], TargetOptions(**options), device=manifest["device"])
    if opened.sha256 != about["sha256"]:
        raise UserError(f"{about['reference']} holds another target than the run began with")
    return opened.target


def saved_data(manifest: dict[str, Any]) -> Images:
    """Load the test images of a manifest again. Raises UserError if they are others by now."""
    about = manifest["data"]
    data = load_data(about["name"], about["split"], folder=manifest["data_dir"])
    if data.digest() != about["sha256"]:
        raise UserError(f"{about['name']} has other images than the run began with")
    return data


def saved_method(run: RunFolder, manifest: dict[str, Any]) -> Method[Any]:
    """Return the method as a run's manifest records it. Raises UserError on another version's recipe."""
    recipe = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["recipe"].items()}
    try:
        method = find(manifest["method"])(**recipe)
    except TypeError as error:
        raise UserError(f"{run.manifest_file} holds another version's recipe: {error}") from error
    if run.start.is_dir():
        method = replace(method, start=str(run.start))  # type: ignore[call-arg]
    return method


def choose_device(device: str) -> str:
    """Return a usable device: "auto" is the GPU if there is one. Raises UserError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


def budget(path: str | Path) -> int:
    """Return the budget of a run. Raises UserError where there is none."""
    return int(RunFolder(path).manifest()["budgets"][-1])
