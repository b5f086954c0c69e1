"""Python objects named on the command line (`package.module:factory`) and by entry points."""

import contextlib
import importlib
import importlib.util
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from dualstudent.errors import UserError
from dualstudent.files import read_json

OURS = (("manifest.json", "budgets"), ("student.json", "arch"), ("target.json", "arch"))  # files, and a key


def load_object(reference: str) -> Any:
    """Import `package.module:name`; the working directory counts as a place for modules.

    Raises UserError where the module or the name cannot be found.
    """
    module_name, colon, name = reference.partition(":")
    if not (module_name and colon and name):
        raise UserError(f"'{reference}' names no factory: write package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    _not_in_a_run(module_name)
    try:
        return getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise UserError(f"cannot import '{module_name}' ({error}): is it installed or in {here}?") from error
    except AttributeError as error:
        raise UserError(f"module '{module_name}' has no '{name}'") from error


def _not_in_a_run(module_name: str) -> None:
    """Raise UserError for a module in a run's, student's or target's folder, which may be a stranger's.

    Such folders name modules; where one is the working directory, it could bring them along.
    """
    top = module_name.partition(".")[0]
    if top in sys.modules:
        return
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return
    places = [] if found is None else [found.origin, *(found.submodule_search_locations or [])]
    for place in (Path(each) for each in places if each is not None and os.sep in each):
        for folder in place.parents:
            if any(_describes(folder / name, key) for name, key in OURS):
                raise UserError(
                    f"'{module_name}' lies in {folder}, a folder of results: code there is not run"
                )


def _describes(path: Path, key: str) -> bool:
    if not path.is_file():
        return False
    with contextlib.suppress(UserError):
        return key in read_json(path)
    return False


def installed(group: str) -> dict[str, Any]:
    """Return what other packages registered under an entry-point group, by name."""
    return {point.name: point.load() for point in entry_points(group=group)}


def call_factory(reference: str, *arguments: Any) -> Any:
    """Call a user's package.module:factory. Raises UserError, in one line, for whatever it raises."""
    factory = load_object(reference)
    try:
        return factory(*arguments)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{reference} failed: {type(error).__name__}: {reason}") from error
