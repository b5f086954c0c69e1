"""The version of the model behind a service: a run's first answer tells it, all its sessions know it."""

from functools import partial

from dualstudent.defences import bare
from dualstudent.errors import UserError
from dualstudent.experiment.folder import SCHEMA_VERSION, RunFolder
from dualstudent.files import read_json, write_json
from dualstudent.spec import Target


def keep_version(run: RunFolder, target: Target) -> None:
    """Let a service end a run whose answers come of another version than those of its earlier sessions.

    Raises UserError, TargetError.
    """
    recall = getattr(bare(target), "recall", None)
    if recall is not None:
        recall(_kept(run), partial(_keep, run))


def _keep(run: RunFolder, version: str) -> None:
    write_json(run.service, {"schema_version": SCHEMA_VERSION, "version": version})


def _kept(run: RunFolder) -> str | None:
    if not run.service.exists():
        return None
    version = read_json(run.service).get("version")
    if not isinstance(version, str) or not version or len(version) > 1000:
        raise UserError(f"{run.service} names no version of a model: restore it from a copy")
    return version
