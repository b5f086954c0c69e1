"""Files that are whole or not there, with one clear line where they cannot be had."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualstudent.errors import UserError


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file that is either whole or not there. Raises UserError."""
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UserError(f"cannot write {path}: a figure is not finite; did the students diverge?") from error
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file that is either whole or not there. Raises UserError."""
    write_whole(path, text.encode(errors="replace"))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there. Raises UserError."""
    if not path.name or path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; give the name of a file")
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def yielding(path: Path, head: bytes, what: str) -> None:
    """Raise UserError where a file is in the way that is not of the kind that begins with `head`."""
    if path.is_file() and not path.read_bytes()[:200].lstrip().lower().startswith(head.lower()):
        raise UserError(f"{path} exists and is no {what}: choose another name")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError where there is none."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: is {path.parent} the right folder?") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not readable as JSON: it is nested too deeply") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object")
    return values


def closed(folder: Path) -> None:
    """Raise UserError where a link in a folder leads out of it: what is written must stay inside."""
    home = folder.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place) / name for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise UserError(f"{path} is a link out of {folder}: replace it by what it leads to")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that is either whole or not there. Raises UserError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {why(error)}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises UserError where there is none, or a damaged one."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {why(error)}") from error


def why(error: BaseException) -> str:
    """Return the plainest reason in one line: the operating system's, if it lies behind an error."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.strerror:
            return behind.strerror
        behind = behind.__cause__ or behind.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
