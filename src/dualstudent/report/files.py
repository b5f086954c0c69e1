"""Files that are whole or not there."""

from contextlib import suppress
from pathlib import Path

from dualstudent.errors import UserError


def write_whole(out: Path, content: bytes) -> None:
    """Write a file that is either whole or not there. Raises UserError."""
    if not out.name or out.is_dir():
        raise UserError(f"cannot write {out}: it is a directory; give the name of a file")
    temporary = out.with_name(out.name + ".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(out)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {out}: {error.strerror}") from error
