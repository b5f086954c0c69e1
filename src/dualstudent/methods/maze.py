"""MAZE: Data-Free Model Stealing (Kariyappa, Prakash, Qureshi; CVPR 2021; arXiv 2005.03161)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dualstudent.losses import kl
from dualstudent.memory import Memory
from dualstudent.methods.base import Method, Metrics, Phase, Rate, cosine, spend
from dualstudent.methods.game import Rememberers, ask, climb_by_asking, learn, make, sgd
from dualstudent.networks import Generator, make_students
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Spec
from dualstudent.zeroth import fine_enough


@dataclass(frozen=True)
class MAZE(Method[Rememberers]):
    """One student; the generator climbs KL(target ‖ student) by forward differences; replay."""

    student: str = "auto"  # architecture, or torch:package.module:factory; auto: the smallest that fits
    students: int = 1  # the paper has one
    batch: int = 128  # images of a batch
    generator_steps: int = 1  # N_G: generator steps of an iteration, directions + 1 queries an image
    student_steps: int = 5  # N_C: batches asked and learnt in an iteration
    replays: int = 10  # N_R: batches learnt again in an iteration
    directions: int = 10  # m: random directions of the forward differences
    radius: float = 1e-3  # ε: length of a step along one, before tanh
    memory: int = 1_000_000  # exchanges kept for replay
    allow_coarse: bool = False  # go on where the target's rounding swallows a step
    noise_size: int = 256  # entries of a noise vector
    width: int = 64  # channels of the generator's last hidden layer; twice as many before
    learn_range: bool = False  # learn scale and offset of the generator's last normalisation
    rate: Rate = 0.1  # learning rate of the student
    momentum: float = 0.9  # of both SGDs
    weight_decay: float = 5e-4  # of the student's SGD
    generator_rate: float = 1e-4  # learning rate of the generator's SGD

    name: ClassVar[str] = "maze"
    needs: ClassVar[Access] = Access.PROBS
    data_free: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {},  # of eight trials, the published one was the best: benchmarks/claims/tune.sh
    }

    def __post_init__(self) -> None:
        self.at_least(students=1, batch=2, generator_steps=0, student_steps=1, replays=0, directions=1)
        self.at_least(memory=self.batch + 2, noise_size=1, width=1)
        self.at_least(rate=0, momentum=0, weight_decay=0, generator_rate=0)
        self.plausible()

    @property
    def asked_by_generator(self) -> int:
        """Images that the generator steps of an iteration ask."""
        return self.batch * self.generator_steps * (self.directions + 1)

    @property
    def queries_per_step(self) -> int:
        return self.batch * self.student_steps + self.asked_by_generator

    def init(self, spec: Spec) -> Rememberers:
        """Return a fresh student, generator and memory. Raises UserError for coarse levels."""
        fine_enough(self.radius, spec, allow_coarse=self.allow_coarse)
        students = make_students(spec, self.student, self.students, 2)
        generator = Generator(
            self.noise_size, spec.shape, spec.bounds, width=self.width, learn_range=self.learn_range
        )
        return Rememberers(
            students,
            sgd(students, self.rate, self.momentum, self.weight_decay),
            generator,
            sgd(generator, self.generator_rate, self.momentum),
            Memory(self.memory, spec),
        )

    def phases(self, budget: int, done: int = 0) -> Sequence[Phase[Rememberers]]:
        """Return iterations that spend the budget, rates along a cosine; the last does not climb."""
        return spend(
            self.iterate,
            budget,
            done,
            batch=self.batch,
            batches=self.student_steps,
            besides=self.asked_by_generator,
            rest=partial(self.iterate, climbs=0),
            schedule=cosine,
        )

    def iterate(
        self, state: Rememberers, oracle: Oracle, sizes: Sequence[int], climbs: int | None = None
    ) -> Metrics:
        """Climb the KL divergence by asking; ask, imitate and remember fresh batches; replay."""
        metrics: dict[str, Tensor] = {}
        for _ in range(self.generator_steps if climbs is None else climbs):
            metrics["climbed"] = climb_by_asking(
                state, oracle, kl, self.batch, directions=self.directions, radius=self.radius
            )
        losses = []
        images = [state.memory.rounded(x) for x in make(state, oracle, sizes)]
        for x, answer in ask(state, oracle, images):
            losses.append(learn(state, kl, x, answer)[0])
            state.memory.add(x, answer)
        losses += [learn(state, kl, *state.memory.draw(self.batch))[0] for _ in range(self.replays)]
        return metrics | {"loss": torch.stack(losses).mean()}
