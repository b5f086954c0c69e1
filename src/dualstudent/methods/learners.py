"""Who learns from what was asked: students, and, where they only choose, the network they choose for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dualstudent.memory import Memory
from dualstudent.methods.base import Metrics
from dualstudent.methods.game import Pupils
from dualstudent.networks import Clone, Students
from dualstudent.oracle import Oracle


@dataclass
class Learners(Pupils):
    """Students, and what was asked."""

    memory: Memory

    @property
    def last(self) -> Pupils:
        """Who learns after the last query."""
        return self


Lesson = Callable[[Learners, Oracle], Metrics]


@dataclass
class Scouts(Learners):
    """Students that choose what is asked, for another that learns it all in the end, and is the clone."""

    heir: Students
    heir_descent: torch.optim.Optimizer

    @property
    def last(self) -> Pupils:
        """The heir alone."""
        return Pupils(self.heir, self.heir_descent)

    @property
    def clone(self) -> Clone:
        """The heir, once it has begun to learn; until then the mean of the scouts."""
        return Clone(self.heir) if self.heir_descent.state else super().clone


def learners(
    students: Students, arch: str, descent: Callable[[Students], torch.optim.Optimizer], memory: Memory
) -> Learners:
    """Return who learns: the students, and, where the clone is to be of another architecture, its heir."""
    mine = descent(students)
    if students.arch == arch:
        return Learners(students, mine, memory)
    heir = Students(arch, students.shape, students.outputs, 1, seen=students.seen)
    return Scouts(students, mine, memory, heir, descent(heir))
