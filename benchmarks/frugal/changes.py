"""What was tried for frugal, each as a method of its own: frugal with one thing changed (variants.py)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualstudent import priors
from dualstudent.losses import cross_entropy, l1, recover_logits, spread
from dualstudent.methods import Frugal
from dualstudent.methods.base import Metrics, descend
from dualstudent.methods.frugal import CHUNK
from dualstudent.methods.game import Learners, Loss, filled_distance, learn, sgd, usual
from dualstudent.methods.procedural import inside
from dualstudent.methods.worth import worth
from dualstudent.networks import Average, Clone, Students
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Spec


@contextmanager
def drawing(prior: Callable[..., Tensor]) -> Iterator[None]:
    """Let candidates come from another prior."""
    broad = priors.broad
    priors.broad = prior  # type: ignore[assignment]
    try:
        yield
    finally:
        priors.broad = broad


def drawn(method: Frugal, state: Learners, times: int = 1) -> tuple[Tensor, Tensor]:
    """Return so many times what frugal learns in a batch."""
    return state.memory.draw(times * method.learnt, method.grain * state.memory.hard)


@dataclass(frozen=True)
class Climbing(Frugal):
    """Where labels are answered, too, a half of what is asked climbs."""

    def chosen(self, state: Learners, spec: Spec, images: int, candidates: int) -> Tensor:
        return super().chosen(state, replace(spec, access=Access.PROBS), images, candidates)


@dataclass(frozen=True)
class Breeding(Frugal):
    """A half of the candidates are bred from two images that were answered, of all classes alike: one
    inside shapes of a scene on the other, or a blend, moved, turned and in another size.
    """

    def chosen(self, state: Learners, spec: Spec, images: int, candidates: int) -> Tensor:
        if candidates == 1 or not len(state.memory):
            return super().chosen(state, spec, images, candidates)
        broad = priors.broad

        def bred(count: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
            half = count // 2
            one, other = (spec.decode(state.memory.draw_even(half)[0]) for _ in range(2))
            share = torch.rand(half, 1, 1, 1)
            mask = priors._mask(half, shape, device)
            child = one.lerp(other, torch.where(torch.rand(half, 1, 1, 1) < 0.5, share, mask))
            turn, size = 0.3 * torch.randn(half), torch.exp(0.2 * torch.randn(half))
            rows = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1) * size[:, None]
            where = torch.cat([rows.view(half, 2, 2), 0.15 * torch.randn(half, 2, 1)], 2)
            grid = F.affine_grid(where, list(child.shape), align_corners=False)
            child = F.grid_sample(child, grid, padding_mode="border", align_corners=False)
            return torch.cat([broad(count - half, shape, device), child])

        with drawing(bred):
            return super().chosen(state, spec, images, candidates)


@dataclass(frozen=True)
class Blending(Frugal):
    """A third of the candidates are blends of two images that were answered, of all classes alike: some lie
    near a boundary.
    """

    def chosen(self, state: Learners, spec: Spec, images: int, candidates: int) -> Tensor:
        if candidates == 1 or not len(state.memory):
            return super().chosen(state, spec, images, candidates)
        broad = priors.broad

        def blended(count: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
            x = broad(count, shape, device)
            part = x[: count // 3]
            pair = [spec.decode(state.memory.draw_even(len(part))[0]) for _ in range(2)]
            part.copy_(pair[0].lerp(pair[1], torch.rand(len(part), 1, 1, 1)))
            return x

        with drawing(blended):
            return super().chosen(state, spec, images, candidates)


@dataclass
class Averaged(Learners):
    """Learners and their running average, which is the clone."""

    average: Average

    @property
    def clone(self) -> Clone:
        return Clone(self.average.or_else(self.students))


@dataclass(frozen=True)
class Averaging(Frugal):
    """The clone is a running average of the students' weights."""

    def init(self, spec: Spec) -> Averaged:
        state = super().init(spec)
        return Averaged(
            state.students, state.student_descent, state.memory, Average(state.students, 0.99, 10)
        )

    def learn(
        self, state: Learners, oracle: Oracle, total: float, batches: int = 0, calm: bool = False
    ) -> Metrics:
        losses = []
        for _ in range(batches or CHUNK):
            losses.append(learn(state, usual(oracle.spec, filled_distance), *drawn(self, state), calm)[0])
            state.average.update(state.students)  # type: ignore[attr-defined]
        return {"loss": torch.stack(losses).mean()}


@dataclass(frozen=True)
class Adapting(Frugal):
    """AdamW instead of Muon."""

    def descent(self, students: Students) -> torch.optim.Optimizer:
        return torch.optim.AdamW(students.parameters(), self.rate, weight_decay=self.weight_decay, fused=True)


@dataclass(frozen=True)
class Plain(Frugal):
    """SGD with momentum 0.9 instead of Muon, as procedural's."""

    weight_decay: float = 5e-4

    def descent(self, students: Students) -> torch.optim.Optimizer:
        return sgd(students, self.rate, 0.9, self.weight_decay)


class Painter(nn.Module):
    """A generator that starts from the prior: it paints over an image, at first nothing."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(c, width, 5, padding=2) for c in (channels, width))
        self.last = nn.Conv2d(width, channels, 5, padding=2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.relu(self.second(F.relu(self.first(x)))))


@dataclass
class Painted(Learners):
    """Learners and the generator that looks for what they disagree on."""

    painter: Painter
    painter_descent: torch.optim.Optimizer


@dataclass(frozen=True)
class Painting(Frugal):
    """A half of the candidates are painted over by a generator that climbs what they are worth, a step of
    Adam on 64 of them before each choice; nothing climbs by itself.
    """

    climbs: int = 0
    pace: float = 1e-3

    def init(self, spec: Spec) -> Painted:
        state, painter = super().init(spec), Painter(spec.shape[0])
        descent = torch.optim.Adam(painter.parameters(), self.pace)
        return Painted(state.students, state.student_descent, state.memory, painter, descent)

    def chosen(self, state: Learners, spec: Spec, images: int, candidates: int) -> Tensor:
        if candidates == 1 or not len(state.memory):
            return super().chosen(state, spec, images, candidates)
        assert isinstance(state, Painted)
        broad, value = priors.broad, partial(worth, sure=self.sure, doubtful=self.doubtful)
        x = spec.encode(broad(images, spec.shape, torch.device("cpu")))
        state.students.eval()
        promised = value(state.students(inside(state.painter(x), spec)), state.memory.classes())
        descend(state.painter_descent, -promised.mean())
        state.students.train()

        def painted(count: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
            made = broad(count, shape, device)
            with torch.no_grad():
                made[::2] = spec.decode(inside(state.painter(spec.encode(made[::2])), spec))
            return made

        with drawing(painted):
            return super().chosen(state, spec, images, candidates)


@dataclass(frozen=True)
class Taught(Frugal):
    """Light students that learn by another loss, or other batches than are remembered: for those below."""

    def loss(self, spec: Spec) -> Loss:
        return usual(spec, filled_distance)

    def drawn(self, state: Learners) -> tuple[Tensor, Tensor]:
        return drawn(self, state)

    def learn(
        self, state: Learners, oracle: Oracle, total: float, batches: int = 0, calm: bool = False
    ) -> Metrics:
        loss = self.loss(oracle.spec)
        losses = [learn(state, loss, *self.drawn(state), calm)[0] for _ in range(batches or CHUNK)]
        return {"loss": torch.stack(losses).mean()}


@dataclass(frozen=True)
class Distilling(Taught):
    """Probabilities are learnt by distillation at a temperature, not by the distance of logits."""

    temperature: float = 4.0

    def loss(self, spec: Spec) -> Loss:
        return usual(spec, self.distillation)

    def distillation(self, logits: Tensor, answer: Tensor) -> Tensor:
        """Return the cross-entropy of both sides' logits over the temperature (Hinton et al. 2015)."""
        softened = (recover_logits(answer) / self.temperature).softmax(1)
        return self.temperature**2 * cross_entropy(logits / self.temperature, softened)


@dataclass(frozen=True)
class Smoothing(Taught):
    """A tenth of each label is spread over all classes."""

    def loss(self, spec: Spec) -> Loss:
        return lambda logits, answer: cross_entropy(logits, 0.9 * answer + 0.1 / answer.shape[1])


@dataclass(frozen=True)
class Doubting(Taught):
    """Of twice as many remembered, those are learnt on which the students disagree."""

    def drawn(self, state: Learners) -> tuple[Tensor, Tensor]:
        x, answer = drawn(self, state, 2)
        with torch.no_grad():
            doubt = spread(state.students(x)).clamp_min(1e-4).log()
        luck = -torch.log(-torch.log(torch.rand(len(x))))
        rows = (doubt + luck).topk(self.learnt).indices
        return x[rows], answer[rows]


@dataclass(frozen=True)
class Consistent(Frugal):
    """On as many images that are not asked each student follows the mean of all."""

    def learn(
        self, state: Learners, oracle: Oracle, total: float, batches: int = 0, calm: bool = False
    ) -> Metrics:
        spec, losses = oracle.spec, []
        loss = usual(spec, filled_distance)
        state.students.learning(calm)
        for _ in range(batches or CHUNK):
            x, answer = drawn(self, state)
            free = inside(spec.encode(priors.broad(self.learnt, spec.shape)), spec)
            with torch.no_grad():
                mean = state.students(free).mean(0)
            both = []
            for member in state.students.members:
                logits = member(torch.cat([x, free]))
                told, follows = logits[: len(x)], logits[len(x) :]
                hard = spec.access == Access.LABEL
                apart = cross_entropy(follows[None], mean.softmax(1)) if hard else l1(follows[None], mean)
                both.append(loss(told[None], answer).mean() + apart.mean())
            descend(state.student_descent, sum(both))  # type: ignore[arg-type]
            losses.append(torch.stack([each.detach() for each in both]).mean())
        return {"loss": torch.stack(losses).mean()}
