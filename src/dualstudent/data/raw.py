"""What every reader returns, and the one error that every broken file becomes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from dualstudent.errors import UserError


class Raw(NamedTuple):
    """Images of one split as a file gives them; `where` says in errors whence they are."""

    where: str
    images: UInt8[np.ndarray, "n c h w"]
    labels: Integer[np.ndarray, "n"]
    classes: tuple[str, ...] | None = None


def broken(where: object, what: str) -> UserError:
    """Return the error for a file that is not what it should be."""
    return UserError(f"{where}: {' '.join(what.split())}; the file is damaged or of another kind: replace it")


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Make a UserError naming `where` of whatever the code inside raises.

    Parsers of zip, gzip, tar, MATLAB and image files answer a broken file with anything from
    EOFError to SyntaxError, so that no list of exceptions would be complete.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{where}: cannot be read ({error.strerror})") from error
        raise broken(where, f"{type(error).__name__}: {error}") from error
