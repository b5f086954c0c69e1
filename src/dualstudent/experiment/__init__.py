"""One run = one directory: extract, resume, evaluate, estimate, export."""

from dualstudent.experiment.again import budget, choose_device
from dualstudent.experiment.core import Run, evaluate, extract, resume
from dualstudent.experiment.estimate import Estimate, estimate
from dualstudent.experiment.export import export_onnx
from dualstudent.experiment.folder import versions

__all__ = [
    "Estimate",
    "Run",
    "budget",
    "choose_device",
    "estimate",
    "evaluate",
    "export_onnx",
    "extract",
    "resume",
    "versions",
]
