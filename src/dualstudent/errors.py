"""Mistakes that a user can mend: one line each, exit code 2, no stack trace."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: its text is one line that says what is wrong, where, and how to mend it."""


class TargetError(UserError):
    """The target answered something that must not become training data."""


class Later(TargetError):
    """The target does not answer now, and may at another time."""


class Refused(TargetError):
    """The target's service refuses, with an HTTP status that asking again does not help."""

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status


class Overdraft(UserError):
    """A request would go over the limit of its account; nothing was asked."""


class Missing(UserError):
    """A data set is not there."""


class Diverged(UserError):
    """Numbers of the run are no longer finite: its learning rates are too high."""


class Stopped(Exception):
    """The run was stopped on request; its snapshot is saved and it can be resumed."""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not among the known ones, with the nearest of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names) or 'none'}"
    return UserError(f"unknown {what} '{name}': {hint}")
