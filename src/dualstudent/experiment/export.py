"""The extracted model as an ONNX file."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dualstudent.errors import UserError
from dualstudent.files import read_json
from dualstudent.networks import load_student
from dualstudent.spec import Spec


class _Probabilities(nn.Module):
    """A clone with softmax: what a service would return."""

    def __init__(self, clone: nn.Module) -> None:
        super().__init__()
        self.clone = clone

    def forward(self, images: Tensor) -> Tensor:
        return self.clone(images).softmax(1)  # type: ignore[no-any-return]


def export_onnx(path: str | Path, out: Path) -> None:
    """Write a run's clone as ONNX: `images` (b, c, h, w) in the target's bounds to `probabilities` (b, k).

    The batch size is free. Raises UserError where the extra or the run is missing.
    """
    clone = load_student(path)
    folder = Path(path) / "student" if (Path(path) / "student").is_dir() else Path(path)
    spec = Spec.from_json(read_json(folder / "student.json")["spec"])
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise UserError("exporting to ONNX needs: pip install 'dualstudent[onnx]'") from error
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is no folder: make it first")
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
    program.save(str(out), external_data=False)
