"""Targets: what can be asked. `open_target` opens one by its reference."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dualstudent.errors import UserError
from dualstudent.plugins import call_factory
from dualstudent.spec import Spec, Target
from dualstudent.targets import folder
from dualstudent.targets.check import Findings, check_target
from dualstudent.targets.folder import weights_sum
from dualstudent.targets.module import CallableTarget, ModuleTarget, Output, check_output
from dualstudent.targets.train import Training, train_target

__all__ = [
    "CallableTarget",
    "Findings",
    "ModuleTarget",
    "Opened",
    "TargetOptions",
    "Training",
    "check_target",
    "open_target",
    "train_target",
    "weights_sum",
]


@dataclass(frozen=True)
class TargetOptions:
    """What the attacker knows of a target, where it does not say so itself."""

    shape: tuple[int, int, int] | None = None  # image shape: channels, height, width
    classes: int | Literal["unknown"] | None = None  # number of classes, or "unknown" (labels only)
    bounds: tuple[float, float] | None = None  # range of its inputs (default 0 1)
    output: Output = "probabilities"  # what a torch: or python: target returns
    space: Literal["pixels", "normalised"] = "pixels"  # inputs of a trained target; normalised: [−1, 1]


@dataclass(frozen=True)
class Opened:
    """A target and what the manifest says of it."""

    target: Target
    reference: str | None  # None for a Python object
    name: str
    sha256: str | None = None  # of the weights, where there is a file
    data: str | None = None  # the data set it was trained on


def open_target(
    reference: str, options: TargetOptions | None = None, *, device: str | torch.device = "cpu"
) -> Opened:
    """Open a target: a folder written by `target train`, torch:package.module:factory (returns an
    nn.Module) or python:package.module:factory (returns a callable). Raises UserError.
    """
    options = options or TargetOptions()
    check_output(options.output)
    kind, _, rest = reference.partition(":")
    if kind in ("torch", "python") and rest:
        return _from_factory(kind, rest, options, device)
    if not Path(reference).is_dir():
        raise UserError(
            f"no target '{reference}': give a folder written by 'dualstudent target train',"
            " torch:package.module:factory or python:package.module:factory"
        )
    for name in ("shape", "bounds"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} is given by {reference}/target.json: leave it out")
    target, about = folder.load(Path(reference), space=options.space, device=device)
    target.spec = _with_classes(target.spec, options)
    name = f"{about['arch']} on {about['data']}"
    return Opened(target, str(Path(reference).absolute()), name, about["sha256"], about["data"])


def _with_classes(spec: Spec, options: TargetOptions) -> Spec:
    if options.classes is None:
        return spec
    if options.classes == "unknown":
        return replace(spec, classes=None)
    if options.classes != spec.classes:
        raise UserError(f"--classes {options.classes}: the target has {spec.classes}")
    return spec


def _from_factory(kind: str, rest: str, options: TargetOptions, device: str | torch.device) -> Opened:
    made: Any = call_factory(rest)
    reference = f"{kind}:{rest}"
    if isinstance(made, Target) and not isinstance(made, nn.Module):
        return Opened(made, reference, rest)
    if options.shape is None or options.classes is None:
        raise UserError(f"{reference} does not say what it takes: give --shape C H W and --classes K")
    classes = None if options.classes == "unknown" else options.classes
    spec = Spec(options.shape, classes, options.bounds or (0.0, 1.0))
    if kind == "torch":
        if not isinstance(made, nn.Module):
            raise UserError(f"{reference} returned a {type(made).__name__}, not a torch.nn.Module")
        target = ModuleTarget(made, spec, output=options.output, device=device)
        return Opened(target, reference, rest.split(":")[-1])
    if not callable(made):
        raise UserError(f"{reference} returned a {type(made).__name__}, which cannot be called")
    return Opened(CallableTarget(made, spec, output=options.output), reference, rest.split(":")[-1])
