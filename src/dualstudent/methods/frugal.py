"""Frugal extraction, our own: choose what to ask from a procedural prior, and learn it thoroughly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dualstudent import parallel, priors
from dualstudent.memory import Memory
from dualstudent.methods.base import Method, Metrics, Phase, Rate, cosine, cut, scaled, slow, spend
from dualstudent.methods.game import Learners, ask, filled_distance, learn, usual
from dualstudent.methods.monitor import nearer, renew, signs
from dualstudent.methods.procedural import inside
from dualstudent.methods.worth import best, climbed, worth
from dualstudent.muon import Muon, for_two, lower
from dualstudent.networks import Students, lighter, make_students
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Spec

CHUNK = 8  # batches learnt in a step that asks nothing
PASSES = 64  # over all answers after the last query, at most, where they are labels: a few are soon known


@dataclass(frozen=True)
class Frugal(Method[Learners]):
    """Ask the procedural images that promise most to students that disagree; learn them thoroughly."""

    student: str = "auto"  # architecture, or torch:package.module:factory; auto: by the images' shape
    students: int = 0  # that disagree; their mean is the clone; 0: two, or one above 6 MFLOP
    batch: int = 0  # images asked in a step; 0: 64, of a large budget a thousandth, 256 at most
    candidates: int = 0  # procedural images for each that is asked; 0: 6, or 1 where one student is alone
    blind: float = 0.1  # share of the budget asked as it comes, before students can choose
    sure: float = 2.0  # in a choice, weight of looking like a class: power of the mean logits' spread
    doubtful: float = 1.0  # in a choice, weight of disagreement: power of its sum over classes
    climbs: int = 3  # steps uphill of a half of what is chosen, where all probabilities are answered
    stride: float = 0.01  # root mean square of such a step, in the range of pixels
    compute: float = 0.35  # batches each student learns, for each query; a large one fewer, one alone more
    compute_least: int = 3000  # batches each student learns at least; a large one fewer, one alone more
    after: float = 0.8  # share of them that are learnt after the last query
    calm: float = 0.2  # share of those, the last, in which BatchNorm's statistics rest
    learnt: int = 128  # images of a batch that is learnt
    grain: float = 0.03  # of the noise on images learnt from labels, root mean square, in the range of pixels
    memory: int = 1_000_000  # exchanges kept
    rate: Rate = 0.015  # learning rate of the students' Muon, lower where much is learnt
    weight_decay: float = 0.3  # of the students: each step takes rate × 0.3 of a weight
    max_classes: int = 1000  # size of the head where the number of classes is unknown

    name: ClassVar[str] = "frugal"
    procedural: ClassVar[bool] = True
    needs: ClassVar[Access] = Access.LABEL
    data_free: ClassVar[bool] = True
    larger: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "quick": {"compute_least": 2000}}

    def __post_init__(self) -> None:
        self.at_least(students=0, candidates=0, climbs=0, stride=0, sure=0, doubtful=0, compute=0)
        self.at_least(compute_least=0, learnt=2, grain=0, rate=0, weight_decay=0, max_classes=2)
        self.at_least(batch=2 * (self.batch != 0), memory=self.queries_per_step + 2)
        self.plausible()

    @property
    def queries_per_step(self) -> int:
        return self.batch or 64

    def init(self, spec: Spec) -> Learners:
        """Return fresh students and an empty memory."""
        arch = self.suits(spec.shape) if self.student == "auto" else self.student
        number = self.students or (2 if lighter(arch, spec.shape) == 1 else 1)
        students = make_students(spec, arch, number, self.max_classes)
        return Learners(students, self.descent(students), Memory(self.memory, spec))

    def descent(self, students: Students) -> torch.optim.Optimizer:
        """Return the optimiser of students."""
        return Muon(students.members, self.rate, self.weight_decay)

    def phases(self, budget: int, done: int = 0) -> Sequence[Phase[Learners]]:
        """Return steps that ask images as they come, steps that choose, then steps that only learn."""
        left, batch = budget - done, self.batch or max(64, min(256, budget // 1000, self.memory - 2))
        batches = max(self.compute * left, float(self.compute_least))
        between = max(1, round((1 - self.after) * batches / max(1, -(-left // batch))))
        later = max(round(self.after * batches / CHUNK), int(self.after * batches > 0))
        turn, falling = 1 - self.after if later else 1.0, scaled(cosine, lower(batches))
        blind = max(0, min(int(self.blind * budget) - done, left - 2 * parallel.world()) // batch)
        chosen, lesson = done + blind * batch, partial(self.learn, total=batches)
        step = partial(self.iterate, lesson=partial(lesson, batches=between))
        asking = cut(falling, 0.0, turn)
        first, part = partial(step, sizes=[batch], blind=True), (done / budget, chosen / budget)
        plan = [Phase("blind", first, blind, batch, cut(asking, *part))]
        plan += spend(step, budget, chosen, batch=batch, batches=1, schedule=asking)
        calm = round(self.calm * later)
        rest = 1 - self.after * calm / max(1, later)
        plan.append(Phase("after", lesson, later - calm, 0, cut(falling, turn, rest)))
        plan.append(Phase("calm", partial(lesson, calm=True), calm, 0, cut(falling, rest, 1.0)))
        return [phase for phase in plan if phase.steps]

    def iterate(
        self,
        state: Learners,
        oracle: Oracle,
        sizes: Sequence[int],
        lesson: Callable[..., Metrics],
        blind: bool = False,
    ) -> Metrics:
        """Choose, ask and remember, then learn from all that is remembered."""
        each = 1 if blind else self.candidates or (6 if len(state.students.members) > 1 else 1)
        images = [self.chosen(state, oracle.spec, size, each) for size in sizes]
        for x, answer in ask(state, oracle, [state.memory.rounded(x) for x in images]):
            state.memory.add(x, answer)
        return lesson(state, oracle)

    def chosen(self, state: Learners, spec: Spec, images: int, candidates: int) -> Tensor:
        """Return this rank's share of the images to ask: of so many for each those that promise most."""
        share, device = parallel.shard(images), next(state.students.parameters()).device
        candidates = candidates if len(state.memory) else 1  # nothing is known at first
        x = inside(spec.encode(priors.broad(share * candidates, spec.shape, device)), spec)
        x = nearer(x, state.memory)
        if candidates == 1:
            return x
        state.students.eval()
        classes, value = state.memory.classes(), partial(worth, sure=self.sure, doubtful=self.doubtful)
        x = best(state.students, value, x, classes, share)
        for _ in range(self.climbs if spec.access == Access.PROBS else 0):
            x[::2] = climbed(state.students, value, x[::2].contiguous(), classes, self.stride, spec)
        return x

    def learn(
        self, state: Learners, oracle: Oracle, total: float, batches: int = 0, calm: bool = False
    ) -> Metrics:
        """Learn batches of so many in all, after the last query a CHUNK; a large network learns fewer."""
        share = lighter(state.students.arch, oracle.spec.shape)
        share *= for_two(share * total) if len(state.students.members) == 1 else 1
        slow(state.student_descent, lower(share * total) / lower(total))
        hard = oracle.spec.access == Access.LABEL
        if hard and not batches:
            share = min(share, PASSES * len(state.memory) / (self.learnt * self.after * total))
        loss, losses, batches = usual(oracle.spec, filled_distance), [], batches or CHUNK
        for _ in range(parallel.whole(batches * share) if share != 1 else batches):
            x, answer = state.memory.draw(self.learnt, self.grain * hard)
            mean, logits = learn(state, loss, x, answer, calm)
            losses.append(mean)
        if not losses:
            return {}
        told = signs(state.memory.classes(), oracle.spec.classes is not None)
        # calm, fresh weights would never have statistics of their own
        renewed = torch.zeros(()) if calm else renew(state, logits, answer)
        return {"loss": torch.stack(losses).mean(), **told, "renewed": renewed}
