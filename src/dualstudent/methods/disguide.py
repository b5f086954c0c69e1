"""DisGUIDE: Disagreement-Guided Data-Free Model Extraction (Rosenthal, Enouen, Pham, Tan; AAAI 2023)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dualstudent.losses import imbalance, spread
from dualstudent.memory import Memory
from dualstudent.methods.base import Method, Metrics, Phase, Rate, descend, frozen, spend, steps_down
from dualstudent.methods.game import Rememberers, adam, ask, classes_of, learn, make, noise, sgd, usual
from dualstudent.networks import Generator, make_students
from dualstudent.oracle import Oracle
from dualstudent.programs import call
from dualstudent.spec import Access, Spec


@dataclass(frozen=True)
class DisGUIDE(Method[Rememberers]):
    """Two students; the generator climbs the spread of their probabilities, and class balance; replay."""

    student: str = "auto"  # architecture, or torch:package.module:factory; auto: the smallest that fits
    students: int = 2  # clones
    batch: int = 256  # images of a batch
    replays: int = 3  # batches learnt again for each that is asked
    diversity: float | None = None  # λ of class balance; default: 0.2 for 10 classes, 0.04 for 100
    grey: float = 0.125  # share of colour images that are asked in grey
    memory: int = 1_000_000  # exchanges kept for replay
    noise_size: int = 256  # entries of a noise vector
    width: int = 64  # channels of the generator's last hidden layer; twice as many before
    learn_range: bool = False  # learn scale and offset of the generator's last normalisation
    rate: Rate = 0.03  # learning rate of the students
    momentum: float = 0.9  # of the students' SGD
    weight_decay: float = 5e-4  # of the students' SGD
    generator_rate: float = 1e-4  # learning rate of the generator's Adam
    drops: tuple[float, ...] = (0.4, 0.8)  # progress at which all rates fall, each time × 0.3
    max_classes: int = 1000  # size of the head where the number of classes is unknown

    name: ClassVar[str] = "disguide"
    needs: ClassVar[Access] = Access.LABEL
    data_free: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {},  # of eight trials, the published one was the best: benchmarks/claims/tune.sh
    }

    def __post_init__(self) -> None:
        self.at_least(students=2, batch=2, replays=0, grey=0, memory=self.batch + 2, noise_size=1, width=1)
        self.at_least(rate=0, momentum=0, weight_decay=0, generator_rate=0, max_classes=2)
        self.plausible()

    @property
    def queries_per_step(self) -> int:
        return self.batch

    def init(self, spec: Spec) -> Rememberers:
        """Return fresh students, generator and memory."""
        students = make_students(spec, self.student, self.students, self.max_classes)
        generator = Generator(
            self.noise_size, spec.shape, spec.bounds, width=self.width, learn_range=self.learn_range
        )
        return Rememberers(
            students,
            sgd(students, self.rate, self.momentum, self.weight_decay),
            generator,
            adam(generator, self.generator_rate),
            Memory(self.memory, spec),
        )

    def phases(self, budget: int, done: int = 0) -> Sequence[Phase[Rememberers]]:
        """Return iterations of one asked batch that spend the budget; rates × 0.3 at `drops`."""
        return spend(
            self.iterate, budget, done, batch=self.batch, batches=1, schedule=steps_down(*self.drops)
        )

    def iterate(self, state: Rememberers, oracle: Oracle, sizes: Sequence[int]) -> Metrics:
        """Climb once; ask, imitate and remember one batch; replay some."""
        metrics = {"gap": self.climb(state)}
        loss, losses = usual(oracle.spec), []
        images = [state.memory.rounded(self.some_grey(x)) for x in make(state, oracle, sizes)]
        for x, answer in ask(state, oracle, images):
            losses.append(learn(state, loss, x, answer)[0])
            state.memory.add(x, answer)
        losses += [learn(state, loss, *state.memory.draw(self.batch))[0] for _ in range(self.replays)]
        return metrics | {"loss": torch.stack(losses).mean()}

    def climb(self, state: Rememberers) -> Tensor:
        """Ascend the students' spread minus λ Σ ω log ω, with ω the mean class probabilities of the batch."""

        def program(z: Tensor) -> tuple[Tensor, ...]:
            with frozen(state.students):
                logits = state.students(state.generator(z))
                gap = spread(logits).mean()
                descend(
                    state.generator_descent,
                    self.weight(classes_of(state.students, logits)) * imbalance(logits) - gap,
                )
            return (gap.detach(),)

        [gap] = call("climb", program, noise(state.generator, self.batch))
        return gap

    def weight(self, classes: Tensor) -> Tensor | float:
        """Return λ: as given, else on the power law through 0.2 and 0.04 for 10 and 100 classes."""
        return self.diversity if self.diversity is not None else 0.2 * (10 / classes) ** math.log10(5)

    def some_grey(self, x: Tensor) -> Tensor:
        """Return images of which a share has lost its colour."""
        if x.shape[1] != 3:
            return x
        chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < self.grey
        return torch.where(chosen, x.mean(1, keepdim=True), x)
