"""Python objects named on the command line (`package.module:factory`) and by entry points."""

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from dualstudent.errors import UserError


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
    try:
        return getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise UserError(f"cannot import '{module_name}' ({error}): is it installed or in {here}?") from error
    except AttributeError as error:
        raise UserError(f"module '{module_name}' has no '{name}'") from error


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
