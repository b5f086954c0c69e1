"""Frugal extraction, our own: choose what to ask from a procedural prior, and learn it thoroughly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dualstudent import parallel, priors
from dualstudent.losses import spread
from dualstudent.memory import Memory
from dualstudent.methods.base import Method, Metrics, Phase, Rate, cosine, cut, spend
from dualstudent.methods.game import adamw, ask, learn, usual
from dualstudent.methods.monitor import evenness, lopsided, renew
from dualstudent.methods.procedural import Learners, inside
from dualstudent.networks import lighter, make_students, suited
from dualstudent.networks.ensemble import MASKED
from dualstudent.oracle import Oracle
from dualstudent.programs import call
from dualstudent.spec import Access, Spec

CHUNK = 8  # batches learnt in a step that asks nothing
DOUBT = 0.02  # disagreement that no image is below


@dataclass(frozen=True)
class Frugal(Method[Learners]):
    """Of procedural images, ask those that look like a class, on which the students disagree, of classes
    seldom answered; learn them between the queries and, longer, after the last.
    """

    student: str = "auto"  # architecture, or torch:package.module:factory; auto: by the images' shape
    students: int = 2  # that disagree; their mean is the clone
    batch: int = 64  # images asked in a step
    candidates: int = 6  # procedural images for each that is asked
    blind: float = 0.1  # share of the budget asked as it comes, before the students can choose
    sure: float = 2.0  # weight of looking like a class: power of the spread of the mean logits
    doubtful: float = 1.0  # weight of the students' disagreement: power of its sum over classes
    compute: float = 0.5  # batches that each student learns, for each query; a large one fewer
    compute_least: int = 3000  # batches that each student learns at least; a large one fewer
    after: float = 0.8  # share of them that are learnt after the last query
    learnt: int = 128  # images of a batch that is learnt
    memory: int = 1_000_000  # exchanges kept
    rate: Rate = 3e-3  # learning rate of the students' AdamW
    weight_decay: float = 0.3  # of the students' AdamW: each step takes rate × 0.3 of a weight
    max_classes: int = 1000  # size of the head where the number of classes is unknown

    name: ClassVar[str] = "frugal"
    procedural: ClassVar[bool] = True
    needs: ClassVar[Access] = Access.LABEL
    data_free: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}

    def __post_init__(self) -> None:
        self.at_least(students=2, batch=2, candidates=1, blind=0, sure=0, doubtful=0, compute=0, after=0)
        self.at_least(compute_least=0, learnt=2, memory=self.batch + 2, rate=0, weight_decay=0, max_classes=2)
        self.plausible()

    @property
    def queries_per_step(self) -> int:
        return self.batch

    def init(self, spec: Spec) -> Learners:
        """Return fresh students and an empty memory."""
        arch = suited(spec.shape) if self.student == "auto" else self.student
        students = make_students(spec, arch, self.students, self.max_classes)
        return Learners(students, adamw(students, self.rate, self.weight_decay), Memory(self.memory, spec))

    def phases(self, budget: int, done: int = 0) -> Sequence[Phase[Learners]]:
        """Return steps that ask images as they come, steps that choose, then steps that only learn."""
        left = budget - done
        batches = max(self.compute * left, self.compute_least)
        between = max(1, round((1 - self.after) * batches / max(1, -(-left // self.batch))))
        later = round(self.after * batches / CHUNK)
        turn = 1 - self.after if later else 1.0
        rates = cut(cosine, 0.0, turn)
        blind = max(0, min(int(self.blind * budget) - done, left - 2 * parallel.world()) // self.batch)
        chosen = done + blind * self.batch
        step = partial(self.iterate, batches=between)
        plan = spend(step, budget, chosen, batch=self.batch, batches=1, schedule=rates)
        if blind:
            as_it_comes = partial(self.iterate, sizes=[self.batch], batches=between, blind=True)
            part = cut(rates, done / budget, chosen / budget)
            plan.insert(0, Phase("blind", as_it_comes, blind, self.batch, part))
        if later:
            plan.append(Phase("after", self.learn, later, 0, cut(cosine, turn, 1.0)))
        return plan

    def iterate(
        self, state: Learners, oracle: Oracle, sizes: Sequence[int], batches: int, blind: bool = False
    ) -> Metrics:
        """Choose, ask and remember, then learn batches drawn from all that is remembered."""
        images = [self.chosen(state, oracle.spec, size, 1 if blind else self.candidates) for size in sizes]
        for x, answer in ask(state, oracle, [state.memory.rounded(x) for x in images]):
            state.memory.add(x, answer)
        return self.learn(state, oracle, batches)

    def chosen(self, state: Learners, spec: Spec, images: int, candidates: int) -> Tensor:
        """Return this rank's share of the images to ask, drawn from so many for each by what they promise."""
        share, device = parallel.shard(images), next(state.students.parameters()).device
        candidates = candidates if len(state.memory) else 1  # nothing is known yet
        x = inside(spec.encode(priors.broad(share * candidates, spec.shape, device)), spec)
        if candidates == 1:
            return x
        if lopsided(state.memory):  # look near what was answered otherwise
            other, _ = state.memory.draw_even(len(x[::2]))
            x[::2] = x[::2].lerp(other.to(x.dtype), torch.rand_like(other[:, :1, :1, :1]))
        state.students.eval()
        with torch.no_grad():
            [worth] = call("promise", partial(self.promise, state), x, state.memory.classes())
        state.students.train()
        luck = -torch.log(-torch.log(torch.rand(len(x), device=device)))  # Gumbel: draws by worth
        return x[(worth + luck).topk(share).indices]

    def promise(self, state: Learners, x: Tensor, classes: Tensor) -> tuple[Tensor]:
        """Return the logarithm of an image's worth: sure of a class, doubtful which, of a rare one."""
        logits = state.students(x)
        mean, known = logits.mean(0), logits[0] > MASKED / 2
        centre = (mean * known).sum(1, keepdim=True) / known.sum(1, keepdim=True)
        sure = (((mean - centre) * known) ** 2).sum(1) / known.sum(1)
        doubt = spread(logits) * logits.shape[2] + DOUBT
        share = classes / classes.sum() * (classes > 0).sum()
        rare = (1 / share.clamp(0.1, 10))[mean.argmax(1)]
        return (self.sure / 2 * sure.clamp_min(1e-6).log() + self.doubtful * doubt.log() + rare.log(),)

    def learn(self, state: Learners, oracle: Oracle, batches: int = CHUNK) -> Metrics:
        """Learn some batches drawn from all that is remembered; a student that sees nothing starts afresh."""
        loss, students, losses = usual(oracle.spec), state.students, []
        share = lighter(students.arch, students.shape)
        if share < 1:
            luck = parallel.total(int(torch.randint(1000, ()))) % 1000 / 1000  # the same on all ranks
            batches = int(batches * share + luck)
        for _ in range(batches):
            x, answer = state.memory.draw(self.learnt)
            mean, logits = learn(state, loss, x, answer)
            losses.append(mean)
        if not losses:
            return {}
        return {
            "loss": torch.stack(losses).mean(),
            "evenness": evenness(state.memory.classes()),
            "renewed": torch.tensor(float(renew(state, logits, answer))),
        }
