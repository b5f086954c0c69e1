"""Dual Student Networks (Beetham, Kardan, Mian, Shah; ICLR 2023; arXiv 2309.10058)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from dualstudent.errors import unknown
from dualstudent.losses import disagreement
from dualstudent.methods.base import Method, Metrics, Phase, descend, frozen, spend, steps_down
from dualstudent.methods.game import Noise, Players, adam, ask, learn, make, noise, sgd, usual
from dualstudent.networks import Average, Clone, Generator, make_students
from dualstudent.oracle import Oracle
from dualstudent.programs import call
from dualstudent.spec import Access, Spec


@dataclass
class DualStudentState(Players):
    """The players, and the students' running average."""

    average: Average | None

    @property
    def clone(self) -> Clone:
        """The mean of the students, or of their running average once that has begun."""
        return Clone(self.students if self.average is None else self.average.or_else(self.students))


@dataclass(frozen=True)
class DualStudent(Method[DualStudentState]):
    """Two students and a generator of images on which they disagree; soft and hard labels."""

    student: str = "auto"  # architecture, or torch:package.module:factory; auto: the smallest that fits
    students: int = 2  # K: the generator climbs the mean disagreement of all pairs
    batch: int = 256  # images of a batch
    generator_steps: int = 1  # generator steps of an iteration, free of queries
    student_steps: int = 5  # batches asked and learnt in an iteration
    noise: Noise = "normal"  # N(0, 1), or U(0, 1) as the paper's text has it
    noise_size: int = 256  # entries of a noise vector
    width: int = 64  # channels of the generator's last hidden layer; twice as many before
    learn_range: bool = False  # learn scale and offset of the generator's last normalisation
    rate_soft: float = 0.3  # learning rate of the students on probabilities
    rate_hard: float = 0.05  # learning rate of the students on labels
    momentum: float = 0.9  # of the students' SGD
    weight_decay: float = 5e-4  # of the students' SGD
    generator_rate: float = 1e-4  # learning rate of the generator's Adam
    drops: tuple[float, ...] = (0.1, 0.3, 0.5)  # progress at which all rates fall, each time × 0.3
    average: float = 0.9  # decay of the running average that is evaluated; 0: none
    average_every: int = 10  # iterations between its updates
    max_classes: int = 1000  # size of the head where the number of classes is unknown
    start: str | None = None  # a run or student folder: it becomes S1, and S1 alone is the clone

    name: ClassVar[str] = "dual-student"
    needs: ClassVar[Access] = Access.LABEL
    data_free: ClassVar[bool] = True
    bounded: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},  # the authors' released settings, for budgets of 2 M and more
        "small": {  # for tens of thousands of queries; tuned on digits, see docs/methods/dual-student.md
            "batch": 128,
            "learn_range": True,
            "generator_rate": 1e-3,
            "rate_soft": 0.1,
            "rate_hard": 0.03,
            "drops": (0.5, 0.8),
            "average": 0.0,
        },
        "tuned": {  # the best of eight trials, as all methods had: benchmarks/claims/tune.sh
            "batch": 32,
            "learn_range": True,
            "generator_rate": 1e-3,
            "drops": (0.5, 0.8),
            "average": 0.0,
            "rate_soft": 0.1,
            "rate_hard": 0.015,
        },
    }

    def __post_init__(self) -> None:
        self.at_least(students=2, batch=2, generator_steps=0, student_steps=1, noise_size=1, width=1)
        self.at_least(rate_soft=0, rate_hard=0, momentum=0, weight_decay=0, generator_rate=0)
        self.at_least(average=0, average_every=1, max_classes=2)
        self.plausible()
        if self.noise not in get_args(Noise):
            raise unknown("noise", self.noise, get_args(Noise))

    @property
    def queries_per_step(self) -> int:
        return self.batch * self.student_steps

    def init(self, spec: Spec) -> DualStudentState:
        """Return fresh students and generator; with `start`, a trained first student."""
        students = make_students(spec, self.student, self.students, self.max_classes, self.start)
        generator = Generator(
            self.noise_size, spec.shape, spec.bounds, width=self.width, learn_range=self.learn_range
        )
        rate = self.rate_hard if spec.access == Access.LABEL else self.rate_soft
        return DualStudentState(
            students,
            sgd(students, rate, self.momentum, self.weight_decay),
            generator,
            adam(generator, self.generator_rate),
            Average(students, self.average, self.average_every) if self.average else None,
        )

    def phases(self, budget: int, done: int = 0) -> Sequence[Phase[DualStudentState]]:
        """Return iterations of `student_steps` batches that spend the budget; rates × 0.3 at `drops`."""
        return spend(
            self.iterate,
            budget,
            done,
            batch=self.batch,
            batches=self.student_steps,
            schedule=steps_down(*self.drops),
        )

    def iterate(self, state: DualStudentState, oracle: Oracle, sizes: Sequence[int]) -> Metrics:
        """Climb the students' disagreement, then ask and imitate one batch of each size."""
        metrics: dict[str, Tensor] = {}
        for _ in range(self.generator_steps):
            metrics |= self.climb(state)
        batches = self.ask(state, oracle, sizes)
        losses = [self.imitate(state, oracle.spec, x, answer, metrics) for x, answer in batches]
        if state.average is not None:
            state.average.update(state.students)
        return metrics | {"loss": torch.stack(losses).mean()}

    def climb(self, state: DualStudentState) -> dict[str, Tensor]:
        """Ascend eq. 3, max_G ‖S1(x) − S2(x)‖₁: no target in sight, true gradients."""

        def program(z: Tensor) -> tuple[Tensor, ...]:
            state.student_descent.zero_grad()  # as large as the students, and not needed now
            x = state.generator(z)
            with frozen(state.students):
                logits = state.students(x)
                gap = disagreement(logits).mean()
                descend(state.generator_descent, -gap)
            return gap.detach(), x.detach(), logits.detach()

        gap, x, logits = call("climb", program, noise(state.generator, self.batch, self.noise))
        return {"gap": gap, "generator/images": x, "generator/logits": logits}

    def ask(
        self, state: DualStudentState, oracle: Oracle, sizes: Sequence[int]
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """Ask fresh images, all batches of an iteration at once: nothing moves the generator in between."""
        return ask(state, oracle, make(state, oracle, sizes, self.noise))

    def imitate(
        self, state: DualStudentState, spec: Spec, x: Tensor, answer: Tensor, metrics: dict[str, Tensor]
    ) -> Tensor:
        """Descend min L_S(S_i(x), T(x)) for each student on the same batch."""
        loss, logits = learn(state, usual(spec), x, answer)
        if "student/loss" not in metrics:  # the first batch: its students are those before the step
            metrics |= {"student/loss": loss, "student/images": x, "student/answers": answer}
            metrics["student/logits"] = logits
        return loss
