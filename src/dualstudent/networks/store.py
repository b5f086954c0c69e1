"""Extracted models on disk: model.safetensors and student.json, never a pickle."""

from pathlib import Path

from torch import nn

from dualstudent.errors import UserError
from dualstudent.files import read_json, read_tensors, write_json, write_tensors
from dualstudent.networks.classifiers import smallest
from dualstudent.networks.ensemble import Classes, Clone, Students
from dualstudent.spec import Spec

SCHEMA_VERSION = 1
MOST, WIDEST = 1000, 10**7  # students and outputs: a file that says more is damaged


def save_student(folder: Path, clone: Clone, *, spec: Spec, seed: int) -> None:
    """Write a clone to `folder`/model.safetensors and `folder`/student.json. Raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(clone, folder / "model.safetensors")
    about = {
        "schema_version": SCHEMA_VERSION,
        "arch": clone.arch,
        "students": len(clone.students),
        "outputs": clone.outputs,
        "ids": None if clone.ids is None else clone.ids.tolist(),
        "spec": spec.to_json(),
        "seed": seed,
    }
    write_json(folder / "student.json", about)


def load_student(path: str | Path) -> Clone:
    """Load an extracted model from a run or its student folder, in eval mode, on the CPU.

    The module gives the mean logits (b, k) of its students for images in the bounds of its target;
    `.students[i]` is each of them. Raises UserError on a missing, damaged or foreign file.
    """
    folder = student_folder(path)
    about = read_json(folder / "student.json")
    try:
        spec, outputs = Spec.from_json(about["spec"]), int(about["outputs"])
        arch, count = about["arch"], about["students"]
        if not (isinstance(arch, str) and type(count) is int and 0 < count <= MOST and 0 < outputs <= WIDEST):
            raise ValueError(f"{count} students of arch {str(arch)[:40]} with {outputs} outputs")
        seen = None if about["ids"] is None else Classes(outputs)
        clone = Clone(Students(arch, spec.shape, outputs, count, seen=seen))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'student.json'} describes no student: {error}") from error
    load_weights(clone, folder / "model.safetensors")
    return clone.eval()


def student_folder(path: str | Path) -> Path:
    """Return the folder of an extracted model, given that or its run's."""
    inner = Path(path) / "student"
    return inner if inner.is_dir() else Path(path)


def student_spec(path: str | Path) -> Spec:
    """Return the spec that an extracted model was made for. Raises UserError."""
    return Spec.from_json(read_json(student_folder(path) / "student.json").get("spec", {}))


def make_students(spec: Spec, arch: str, count: int, max_classes: int, start: str | None = None) -> Students:
    """Return K fresh students for a target; `start` is a run or student folder whose first is kept.

    Where the number of classes is unknown, the head has `max_classes` outputs. Raises UserError.
    """
    outputs = spec.classes or max_classes
    if start is None:
        seen = Classes(outputs) if spec.classes is None else None
        arch = smallest(spec.shape) if arch == "auto" else arch
        return Students(arch, spec.shape, outputs, count, seen=seen)
    clone, known_spec = load_student(start), student_spec(start)
    if arch not in ("auto", clone.arch):
        raise UserError(f"--start {start} is a {clone.arch}: leave --student {arch} out")
    for what in ("shape", "bounds", "mean", "std"):
        mine, theirs = getattr(known_spec, what), getattr(spec, what)
        if mine != theirs:
            raise UserError(
                f"{start} takes inputs of {what} {mine}, the target {theirs}: it cannot be the start"
            )
    if clone.outputs != spec.classes or clone.seen is not None:
        known = spec.classes or "an unknown number"
        raise UserError(f"{start} has {clone.outputs} classes, the target {known}: it cannot be the start")
    return Students(clone.arch, spec.shape, outputs, count, first=clone.students[0].train())


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state to a safetensors file. Raises UserError where that cannot be done."""
    write_tensors(path, module.state_dict())


def load_weights(module: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a module. Raises UserError if it does not fit."""
    state = read_tensors(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} holds weights of another network: {reason}") from error
