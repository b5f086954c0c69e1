"""Baselines without a game: ask images from a fixed source, learn the answers in several passes."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from dualstudent import parallel, priors
from dualstudent.memory import Memory
from dualstudent.methods.base import Method, Metrics, Phase, cosine, spend
from dualstudent.methods.game import Learners, ask, learn, sgd, usual
from dualstudent.networks import make_students
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Spec


@dataclass(frozen=True)
class Pool(Method[Learners]):
    """Ask a batch of the source, remember it, learn some remembered batches; rates along a cosine."""

    student: str = "auto"  # architecture, or torch:package.module:factory; auto: the smallest that fits
    students: int = 1  # that learn side by side; their mean is the clone
    batch: int = 64  # images asked in a step
    replays: int = 4  # batches learnt in a step
    learnt: int = 128  # images of a batch that is learnt
    memory: int = 1_000_000  # exchanges kept
    rate_soft: float = 0.05  # learning rate of the students on probabilities
    rate_hard: float = 0.05  # learning rate of the students on labels
    momentum: float = 0.9  # of the students' SGD
    weight_decay: float = 5e-4  # of the students' SGD
    max_classes: int = 1000  # size of the head where the number of classes is unknown

    needs: ClassVar[Access] = Access.LABEL
    data_free: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tuned": {"students": 2},  # the best of eight trials: benchmarks/claims/tune.sh
    }

    def __post_init__(self) -> None:
        self.at_least(students=1, batch=2, replays=1, learnt=2, memory=self.batch + 2, max_classes=2)
        self.at_least(rate_soft=0, rate_hard=0, momentum=0, weight_decay=0)
        self.plausible()

    @property
    def queries_per_step(self) -> int:
        return self.batch

    @abstractmethod
    def pixels(self, state: Learners, first: int, images: int, spec: Spec, device: torch.device) -> Tensor:
        """Return this rank's share of the next images, pixels in [0, 1]; `first` were asked before."""

    def init(self, spec: Spec) -> Learners:
        """Return fresh students and an empty memory."""
        students = make_students(spec, self.student, self.students, self.max_classes)
        rate = self.rate_hard if spec.access == Access.LABEL else self.rate_soft
        descent = sgd(students, rate, self.momentum, self.weight_decay)
        return Learners(students, descent, Memory(self.memory, spec))

    def phases(self, budget: int, done: int = 0) -> Sequence[Phase[Learners]]:
        """Return steps of one asked batch that spend the budget; rates along a cosine."""
        return spend(self.iterate, budget, done, batch=self.batch, batches=1, schedule=cosine)

    def iterate(self, state: Learners, oracle: Oracle, sizes: Sequence[int]) -> Metrics:
        """Ask and remember, then learn batches drawn from all that is remembered."""
        device, spec = next(state.students.parameters()).device, oracle.spec
        first = [state.memory.added + before for before in accumulate(sizes, initial=0)]
        images = [self.pixels(state, *at, spec, device) for at in zip(first, sizes, strict=False)]
        images = [state.memory.rounded(inside(spec.encode(x), spec)) for x in images]
        for x, answer in ask(state, oracle, images):
            state.memory.add(x, answer)
        loss = usual(spec)
        losses = [learn(state, loss, *state.memory.draw(self.learnt))[0] for _ in range(self.replays)]
        return {"loss": torch.stack(losses).mean()}


def inside(x: Tensor, spec: Spec) -> Tensor:
    """Return inputs cut off at the bounds, which normalised pixels may leave."""
    return x.clamp(*spec.bounds)


@dataclass(frozen=True)
class Noise(Pool):
    """Images whose pixels are drawn one by one: the least that a method has to beat."""

    name: ClassVar[str] = "noise"

    def pixels(self, state: Learners, first: int, images: int, spec: Spec, device: torch.device) -> Tensor:
        return priors.noise(parallel.shard(images), spec.shape, device)


@dataclass(frozen=True)
class Procedural(Pool):
    """Smooth fields, strokes and blobs: structure, without data, a network or a game."""

    name: ClassVar[str] = "procedural"
    procedural: ClassVar[bool] = True

    def pixels(self, state: Learners, first: int, images: int, spec: Spec, device: torch.device) -> Tensor:
        return priors.procedural(parallel.shard(images), spec.shape, device)
