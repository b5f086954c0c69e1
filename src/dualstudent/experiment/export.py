"""The extracted model as an ONNX file."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dualstudent.errors import UserError
from dualstudent.networks import Clone, load_student
from dualstudent.networks.store import student_spec


class _Probabilities(nn.Module):
    """A clone with softmax: what a service would return, a column for each of the target's classes."""

    place: Tensor | None

    def __init__(self, clone: Clone) -> None:
        super().__init__()
        self.clone = clone
        place = None
        if clone.ids is not None:  # outputs are in order of first appearance
            seen = int((clone.ids >= 0).sum())
            place = torch.zeros(len(clone.ids), int(clone.ids.max()) + 1)
            place[torch.arange(seen), clone.ids[:seen]] = 1
        self.register_buffer("place", place)

    def forward(self, images: Tensor) -> Tensor:
        p = self.clone(images).softmax(1)
        return p if self.place is None else p @ self.place  # type: ignore[no-any-return]


def export_onnx(path: str | Path, out: Path) -> None:
    """Write a run's clone as ONNX: `images` (b, c, h, w) in the target's bounds to `probabilities` (b, k).

    The batch size is free; column j is the target's class j, 0 for one that was never seen. Raises
    UserError where the extra or the run is missing.
    """
    clone = load_student(path)
    spec = student_spec(path)
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise UserError("exporting to ONNX needs: pip install 'dualstudent[onnx]'") from error
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is no folder: make it first")
    if out.exists() and out.suffix != ".onnx":
        raise UserError(f"{out} exists and is no ONNX file by its name: choose another")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            _Probabilities(clone).eval(),
            (torch.zeros(2, *spec.shape),),
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    temporary = out.with_name(out.name + ".tmp")
    try:
        program.save(str(temporary), external_data=False)
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
