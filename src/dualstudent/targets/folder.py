"""Targets that `dualstudent target train` wrote: model.safetensors and target.json."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dualstudent.errors import UserError
from dualstudent.files import read_json, write_json
from dualstudent.networks import classifier, folded
from dualstudent.networks.store import load_weights, save_weights
from dualstudent.spec import Spec
from dualstudent.targets.module import ModuleTarget

SCHEMA_VERSION = 1
Space = Literal["pixels", "normalised"]


def save(folder: Path, network: nn.Module, about: dict[str, Any]) -> dict[str, Any]:
    """Write a trained network and what is known of it, its weights' sum included."""
    save_weights(network, folder / "model.safetensors")
    about = {"schema_version": SCHEMA_VERSION, **about, "sha256": file_sum(folder / "model.safetensors")}
    write_json(folder / "target.json", about)
    return about


def load(folder: Path, *, space: Space, device: str | torch.device) -> tuple[ModuleTarget, dict[str, Any]]:
    """Open a trained target. Raises UserError on a missing, damaged or foreign folder.

    In space "pixels" it takes [0, 1] and normalises by itself; in "normalised" it takes normalised
    values, of which an attacker uses [−1, 1], as in the paper's and DFME's setting.
    """
    about = read_json(folder / "target.json")
    try:
        spec = Spec.from_json(about["spec"])
        mean, std = (tuple(map(float, about["normalise"][key])) for key in ("mean", "std"))
        if not all(isinstance(about[key], str) for key in ("arch", "data", "sha256")):
            raise TypeError("arch, data and sha256 are words")
        if spec.classes is None:
            raise TypeError("the number of classes is not there")
        network = classifier(about["arch"], spec.shape, spec.classes)
        expected = about["sha256"]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'target.json'} describes no target: {error}") from error
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing")
    if file_sum(weights) != expected:
        raise UserError(f"{weights} is not the file that target.json describes (another SHA-256)")
    load_weights(network, weights)
    network = folded(network.eval()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if space == "normalised":
        spec = replace(spec, bounds=(-1.0, 1.0), mean=mean, std=std)
        return ModuleTarget(network, spec, output="logits", device=device), about
    return ModuleTarget(network, spec, output="logits", normalise=(mean, std), device=device), about


def file_sum(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sum(network: nn.Module) -> str | None:
    """Return the SHA-256, in hex, of a network's weights and buffers; None where some cannot be read.

    Single whole numbers are left out: counters, which asking may move.
    """
    total, seen = hashlib.sha256(), 0
    for name, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            return None
        if value.ndim > 0 or value.is_floating_point():
            seen += 1
            total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest() if seen else None
