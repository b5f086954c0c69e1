"""The methods, one paper a file, and their registry. A new one is a file and a line here."""

from typing import Any

from dualstudent.errors import unknown
from dualstudent.methods.base import Method, Metrics, Phase, State
from dualstudent.methods.dfme import DFME
from dualstudent.methods.dfms import DFMSHL, DFMSSL
from dualstudent.methods.disguide import DisGUIDE
from dualstudent.methods.dual_student import DualStudent
from dualstudent.methods.frugal import Frugal
from dualstudent.methods.knockoff import Knockoff
from dualstudent.methods.maze import MAZE
from dualstudent.methods.procedural import Noise, Procedural
from dualstudent.plugins import installed

BUILT_IN: tuple[type[Method[Any]], ...] = (
    DualStudent,
    Frugal,
    DFME,
    MAZE,
    DFMSSL,
    DFMSHL,
    DisGUIDE,
    Procedural,
    Noise,
    Knockoff,
)

__all__ = [
    "BUILT_IN",
    "DFME",
    "DFMSHL",
    "DFMSSL",
    "MAZE",
    "DisGUIDE",
    "DualStudent",
    "Frugal",
    "Knockoff",
    "Method",
    "Metrics",
    "Noise",
    "Phase",
    "Procedural",
    "State",
    "find",
    "registry",
]


def registry() -> dict[str, type[Method[Any]]]:
    """Return all methods by name, those of the entry-point group `dualstudent.methods` included."""
    return {method.name: method for method in BUILT_IN} | installed("dualstudent.methods")


def find(name: str) -> type[Method[Any]]:
    """Return a method by name. Raises UserError."""
    known = registry()
    if name not in known:
        raise unknown("method", name, known)
    return known[name]
