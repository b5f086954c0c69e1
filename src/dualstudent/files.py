"""JSON files that are whole or not there, with one clear line where they cannot be had."""

import json
from pathlib import Path
from typing import Any

from dualstudent.errors import UserError


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file that is either whole or not there. Raises UserError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError where there is none."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: is {path.parent} the right folder?") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object")
    return values
