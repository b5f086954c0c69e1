"""Networks: classifiers by name, the generator, and K students as one."""

from dualstudent.networks.classifiers import (
    ARCHITECTURES,
    classifier,
    folded,
    lighter,
    smallest,
    suited,
    work,
)
from dualstudent.networks.ensemble import Average, Classes, Clone, Students
from dualstudent.networks.generators import Generator
from dualstudent.networks.store import load_student, make_students, save_student

__all__ = [
    "ARCHITECTURES",
    "Average",
    "Classes",
    "Clone",
    "Generator",
    "Students",
    "classifier",
    "folded",
    "lighter",
    "load_student",
    "make_students",
    "save_student",
    "smallest",
    "suited",
    "work",
]
