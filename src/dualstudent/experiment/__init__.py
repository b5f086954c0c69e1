"""One run = one directory: extract, resume, evaluate, estimate, export."""

from dualstudent.experiment.again import budget, choose_device, device_of, facing, going_on, told_threads
from dualstudent.experiment.attacks import attack_run, sweep_over
from dualstudent.experiment.core import Run, evaluate, extract, resume
from dualstudent.experiment.estimate import Estimate, estimate
from dualstudent.experiment.export import export_onnx
from dualstudent.experiment.folder import versions
from dualstudent.experiment.journals import Verdict, export_journal, repair_journal, verify_journal

__all__ = [
    "Estimate",
    "Run",
    "Verdict",
    "attack_run",
    "budget",
    "choose_device",
    "device_of",
    "estimate",
    "evaluate",
    "export_journal",
    "export_onnx",
    "extract",
    "facing",
    "going_on",
    "repair_journal",
    "resume",
    "sweep_over",
    "told_threads",
    "verify_journal",
    "versions",
]
