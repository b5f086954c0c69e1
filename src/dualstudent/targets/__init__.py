"""Targets: what can be asked. `open_target` opens one by its reference."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dualstudent.errors import UserError
from dualstudent.plugins import call_factory
from dualstudent.spec import Spec, Target
from dualstudent.targets import folder
from dualstudent.targets.check import Findings, Pace, check_target
from dualstudent.targets.folder import weights_sum
from dualstudent.targets.module import CallableTarget, ModuleTarget, Output, check_output
from dualstudent.targets.onnx import OnnxTarget
from dualstudent.targets.onnx_file import Layout
from dualstudent.targets.train import Training, train_target
from dualstudent.targets.wire import SecretNames, ServiceOptions

__all__ = [
    "CallableTarget",
    "Findings",
    "ModuleTarget",
    "OnnxTarget",
    "Opened",
    "Pace",
    "SecretNames",
    "ServiceOptions",
    "TargetOptions",
    "Training",
    "check_target",
    "open_target",
    "train_target",
    "weights_sum",
]


SCHEMES = ("http", "https", "http+json", "https+json")


@dataclass(frozen=True)
class TargetOptions:
    """What the attacker knows of a target, where it does not say so itself."""

    shape: tuple[int, int, int] | None = None  # image shape: channels, height, width
    classes: int | Literal["unknown"] | None = None  # number of classes, or "unknown" (labels only)
    bounds: tuple[float, float] | None = None  # range of its inputs (default 0 1)
    output: Output = "probabilities"  # what the target returns, where it does not say so itself
    levels: int | None = None  # input levels: 256 where a service takes 8-bit images (default: any value)
    layout: Layout = "auto"  # order of a model's axes, where its shape leaves that open
    output_name: str | None = None  # the output of a model that is the answer, where it has several
    space: Literal["pixels", "normalised"] = "pixels"  # inputs of a trained target; normalised: [−1, 1]
    service: ServiceOptions = field(default_factory=ServiceOptions)  # how a service is asked

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TargetOptions":
        """Read what a manifest recorded. Raises UserError on another version's."""
        known = dict(values)
        for name in ("shape", "bounds"):
            known[name] = None if known.get(name) is None else tuple(known[name])
        known["service"] = ServiceOptions.from_json(known.get("service") or {})
        try:
            return cls(**known)
        except TypeError as error:
            raise UserError(f"these are no options of a target: {error}") from error


_OF_A_SERVICE = ("shape", "classes", "bounds", "levels", "output", "output_name", "layout")
_OF_A_SPEC = ("shape", "classes", "bounds", "output", "levels")


@dataclass(frozen=True)
class Opened:
    """A target and what the manifest says of it."""

    target: Target
    reference: str | None  # None for a Python object
    name: str
    sha256: str | None = None  # of the weights, where there is a file
    data: str | None = None  # the data set it was trained on
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 by name, of each file of an ONNX model
    service: dict[str, Any] | None = None  # what a service says of itself


def open_target(
    reference: str, options: TargetOptions | None = None, *, device: str | torch.device = "cpu"
) -> Opened:
    """Open a target: a folder written by `target train`, torch:package.module:factory (returns an
    nn.Module), python:package.module:factory (returns a callable), onnx:FILE, or a service at an address.

    Raises UserError.
    """
    options = options or TargetOptions()
    check_output(options.output)
    kind, _, rest = reference.partition(":")
    if kind in SCHEMES:
        from dualstudent.targets.web import open_service  # its client is an extra

        _unknown_to(reference, options, "space")
        said = {name: getattr(options, name) for name in _OF_A_SERVICE}
        service, name, about = open_service(reference, options.service, **said)
        return Opened(service, reference, name, about.pop("sha256"), service=about)
    if options.service != ServiceOptions():
        raise UserError(f"{reference} is no service: leave out the options of how one is asked")
    if kind == "onnx" and rest:
        return _from_onnx(Path(rest), options)
    if reference.endswith(".onnx") and Path(reference).is_file():
        return _from_onnx(Path(reference), options)
    _unknown_to(reference, options, "layout", "output_name")
    if kind in ("torch", "python") and rest:
        return _from_factory(kind, rest, options, device)
    if not Path(reference).is_dir():
        raise UserError(
            f"no target '{reference}': give a folder written by 'dualstudent target train', onnx:FILE,"
            " http://host/v2/models/NAME, torch:package.module:factory or python:package.module:factory"
        )
    for name in ("shape", "bounds"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} is given by {reference}/target.json: leave it out")
    if options.levels is not None and options.space == "normalised":
        raise UserError("--levels counts those of pixels: leave out --space normalised")
    target, about = folder.load(Path(reference), space=options.space, device=device)
    target.spec = replace(_with_classes(target.spec, options), levels=options.levels or target.spec.levels)
    name = f"{about['arch']} on {about['data']}"
    return Opened(target, str(Path(reference).absolute()), name, about["sha256"], about["data"])


def _unknown_to(reference: str, options: TargetOptions, *names: str) -> None:
    """Raise UserError for options that a target cannot have."""
    usual = {f.name: f.default for f in fields(TargetOptions)}
    given = [name for name in names if getattr(options, name) != usual[name]]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} does not fit {reference}: leave it out")


def _from_onnx(path: Path, options: TargetOptions) -> Opened:
    reference = f"onnx:{path.absolute()}"
    _unknown_to(reference, options, "space")
    target = OnnxTarget(
        path,
        shape=options.shape,
        classes=options.classes,
        bounds=options.bounds,
        levels=options.levels,
        output=options.output,
        output_name=options.output_name,
        layout=options.layout,
    )
    return Opened(target, reference, path.name, target.files[path.name], files=target.files)


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
        _unknown_to(f"{reference}, which has a spec of its own", options, *_OF_A_SPEC)
        return Opened(made, reference, rest)
    if options.shape is None or options.classes is None:
        raise UserError(f"{reference} does not say what it takes: give --shape C H W and --classes K")
    classes = None if options.classes == "unknown" else options.classes
    spec = Spec(options.shape, classes, options.bounds or (0.0, 1.0), levels=options.levels)
    if kind == "torch":
        if not isinstance(made, nn.Module):
            raise UserError(f"{reference} returned a {type(made).__name__}, not a torch.nn.Module")
        target = ModuleTarget(made, spec, output=options.output, device=device)
        return Opened(target, reference, rest.split(":")[-1])
    if not callable(made):
        raise UserError(f"{reference} returned a {type(made).__name__}, which cannot be called")
    return Opened(CallableTarget(made, spec, output=options.output), reference, rest.split(":")[-1])
