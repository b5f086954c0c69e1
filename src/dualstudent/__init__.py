"""Data-free model extraction under one honest query budget. For models you own or may test.

Names are imported on first use: the command line has to set OpenMP's variables before torch loads.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dualstudent.data import Images, load_data
    from dualstudent.errors import Overdraft, Stopped, TargetError, UserError
    from dualstudent.experiment import Run, evaluate, extract, resume
    from dualstudent.ledger import Account
    from dualstudent.methods import DualStudent, Frugal
    from dualstudent.networks import load_student
    from dualstudent.oracle import Oracle
    from dualstudent.spec import Access, Service, Spec, Target, Traffic
    from dualstudent.targets import CallableTarget, ModuleTarget, open_target, train_target

_HOME = {
    "data": ("Images", "load_data"),
    "errors": ("Overdraft", "Stopped", "TargetError", "UserError"),
    "experiment": ("Run", "evaluate", "extract", "resume"),
    "ledger": ("Account",),
    "methods": ("DualStudent", "Frugal"),
    "networks": ("load_student",),
    "oracle": ("Oracle",),
    "spec": ("Access", "Service", "Spec", "Target", "Traffic"),
    "targets": ("CallableTarget", "ModuleTarget", "open_target", "train_target"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Access",
    "Account",
    "CallableTarget",
    "DualStudent",
    "Frugal",
    "Images",
    "ModuleTarget",
    "Oracle",
    "Overdraft",
    "Run",
    "Service",
    "Spec",
    "Stopped",
    "Target",
    "TargetError",
    "Traffic",
    "UserError",
    "evaluate",
    "extract",
    "load_data",
    "load_student",
    "open_target",
    "resume",
    "train_target",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'dualstudent' has no attribute '{name}'")
    return getattr(importlib.import_module(f"dualstudent.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
