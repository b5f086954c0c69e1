"""Data-Free Model Extraction (Truong, Maini, Walls, Papernot; CVPR 2021; arXiv 2011.14779)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from dualstudent.errors import unknown
from dualstudent.losses import cross_entropy, kl, multi_margin
from dualstudent.methods.base import Method, Metrics, Phase, Rate, spend, steps_down
from dualstudent.methods.game import (
    Loss,
    Players,
    adam,
    ask,
    climb_by_asking,
    learn,
    logit_distance,
    make,
    sgd,
)
from dualstudent.networks import Generator, make_students
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Spec
from dualstudent.zeroth import fine_enough

Soft = Literal["l1", "kl"]
Hard = Literal["multi-margin", "cross-entropy"]
LOSSES: Mapping[str, Loss] = {
    "l1": logit_distance,
    "kl": kl,
    "multi-margin": multi_margin,
    "cross-entropy": cross_entropy,
}


@dataclass(frozen=True)
class DFME(Method[Players]):
    """One student; the generator climbs its distance to the target, by forward differences."""

    student: str = "auto"  # architecture, or torch:package.module:factory; auto: the smallest that fits
    students: int = 1  # the paper has one; of several, each learns, and the mean loss is climbed
    batch: int = 256  # images of a batch
    generator_steps: int = 1  # generator steps of an iteration, directions + 1 queries an image
    student_steps: int = 5  # batches asked and learnt in an iteration
    directions: int = 1  # m: random directions of the forward differences
    radius: float = 1e-3  # ε: length of a step along one, before tanh
    soft_loss: Soft = "l1"  # of the student, and what is climbed, on probabilities
    hard_loss: Hard = "multi-margin"  # the same on labels
    noise_size: int = 256  # entries of a noise vector
    width: int = 64  # channels of the generator's last hidden layer; twice as many before
    learn_range: bool = False  # learn scale and offset of the generator's last normalisation
    rate: Rate = 0.1  # learning rate of the student
    momentum: float = 0.9  # of the student's SGD
    weight_decay: float = 5e-4  # of the student's SGD
    generator_rate: float = 1e-4  # learning rate of the generator's Adam
    drops: tuple[float, ...] = (0.1, 0.3, 0.5)  # progress at which all rates fall, each time × 0.3
    allow_coarse: bool = False  # go on where the target's rounding swallows a step
    max_classes: int = 1000  # size of the head where the number of classes is unknown

    name: ClassVar[str] = "dfme"
    needs: ClassVar[Access] = Access.LABEL
    data_free: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {},  # of eight trials, the published one was the best: benchmarks/claims/tune.sh
    }

    def __post_init__(self) -> None:
        self.at_least(students=1, batch=2, generator_steps=0, student_steps=1, directions=1, noise_size=1)
        self.at_least(width=1, rate=0, momentum=0, weight_decay=0, generator_rate=0, max_classes=2)
        self.plausible()
        if self.soft_loss not in get_args(Soft) or self.hard_loss not in get_args(Hard):
            raise unknown("loss", f"{self.soft_loss}, {self.hard_loss}", LOSSES)

    @property
    def asked_by_generator(self) -> int:
        """Images that the generator steps of an iteration ask."""
        return self.batch * self.generator_steps * (self.directions + 1)

    @property
    def queries_per_step(self) -> int:
        return self.batch * self.student_steps + self.asked_by_generator

    def init(self, spec: Spec) -> Players:
        """Return a fresh student and generator. Raises UserError for coarse levels."""
        fine_enough(self.radius, spec, allow_coarse=self.allow_coarse)
        students = make_students(spec, self.student, self.students, self.max_classes)
        generator = Generator(
            self.noise_size, spec.shape, spec.bounds, width=self.width, learn_range=self.learn_range
        )
        return Players(
            students,
            sgd(students, self.rate, self.momentum, self.weight_decay),
            generator,
            adam(generator, self.generator_rate),
        )

    def phases(self, budget: int, done: int = 0) -> Sequence[Phase[Players]]:
        """Return iterations that spend the budget; in the last, smaller one the student alone learns."""
        return spend(
            self.iterate,
            budget,
            done,
            batch=self.batch,
            batches=self.student_steps,
            besides=self.asked_by_generator,
            rest=partial(self.iterate, climbs=0),
            schedule=steps_down(*self.drops),
        )

    def iterate(
        self, state: Players, oracle: Oracle, sizes: Sequence[int], climbs: int | None = None
    ) -> Metrics:
        """Climb the student's loss by asking, then ask and imitate one batch of each size."""
        loss = LOSSES[self.hard_loss if oracle.spec.access == Access.LABEL else self.soft_loss]
        metrics: dict[str, Tensor] = {}
        for _ in range(self.generator_steps if climbs is None else climbs):
            metrics["climbed"] = climb_by_asking(
                state, oracle, loss, self.batch, directions=self.directions, radius=self.radius
            )
        batches = ask(state, oracle, make(state, oracle, sizes))
        losses = [learn(state, loss, x, answer)[0] for x, answer in batches]
        return metrics | {"loss": torch.stack(losses).mean()}
