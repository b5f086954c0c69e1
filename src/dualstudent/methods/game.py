"""What the methods share: the players, how they ask and learn, and how they climb by asking."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from dualstudent import parallel
from dualstudent.losses import cross_entropy, filled, l1, recover_logits
from dualstudent.memory import Memory
from dualstudent.methods.base import descend
from dualstudent.networks import Clone, Generator, Students
from dualstudent.networks.dcgan import DCGenerator
from dualstudent.numerics import exact, full
from dualstudent.oracle import Oracle
from dualstudent.programs import call
from dualstudent.spec import Access, Spec
from dualstudent.zeroth import forward_differences

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (s, b, k), answers (b, k) -> (s, b)
Noise = Literal["normal", "uniform"]


@dataclass
class Pupils:
    """Students that learn."""

    students: Students
    student_descent: torch.optim.Optimizer

    @property
    def clone(self) -> Clone:
        """The mean of the students that are judged."""
        return Clone(self.students)


@dataclass
class Learners(Pupils):
    """Students, and what was asked."""

    memory: Memory


@dataclass
class Players(Pupils):
    """Students, and the generator that looks for images."""

    generator: Generator
    generator_descent: torch.optim.Optimizer


@dataclass
class Rememberers(Players):
    """Players that learn again what was asked."""

    memory: Memory


def sgd(module: nn.Module, rate: float, momentum: float, weight_decay: float = 0.0) -> torch.optim.SGD:
    """Return the usual optimiser of a network."""
    return torch.optim.SGD(module.parameters(), rate, momentum, weight_decay=weight_decay, fused=True)


def adam(module: nn.Module, rate: float, first: float = 0.9) -> torch.optim.Adam:
    """Return the usual optimiser of a generator; `first` is the first of its betas."""
    return torch.optim.Adam(module.parameters(), rate, (first, 0.999), fused=True)


def logit_distance(logits: Tensor, answer: Tensor) -> Tensor:
    """Return the ℓ1 distance to the target's recovered logits, (s, b)."""
    return l1(logits, recover_logits(answer))


def filled_distance(logits: Tensor, answer: Tensor) -> Tensor:
    """Return the ℓ1 distance to the recovered logits of answers whose zeros are filled, (s, b)."""
    return logit_distance(logits, filled(answer))


def usual(spec: Spec, soft: Loss = logit_distance) -> Loss:
    """Return what students descend: cross-entropy on labels, on probabilities `soft`: ℓ1 of logits."""
    return cross_entropy if spec.access == Access.LABEL else soft


def told(students: Students, answer: Tensor) -> Tensor:
    """Return answers over the students' own outputs, where the number of classes is unknown."""
    return answer if students.seen is None else students.seen.learn(answer)


def learn(
    players: Pupils, loss: Loss, x: Tensor, answer: Tensor, calm: bool = False
) -> tuple[Tensor, Tensor]:
    """Descend each student's loss on one batch; return the mean loss and the logits (s, b, k) before.

    `calm`: BatchNorm keeps its statistics and takes them, not the batch's, as when the students are asked.
    """
    players.students.learning(calm)

    def program(x: Tensor, answer: Tensor) -> tuple[Tensor, ...]:
        turns = players.students.in_turns(x)
        seen: list[tuple[Tensor, Tensor]] = [(x, x)] * len(turns)

        def of(turn: int) -> Tensor:
            logits = turns[turn]()
            each = loss(logits, answer).mean(1)
            seen[turn] = logits.detach(), each.detach()
            return each.sum()

        jobs = [partial(of, turn) for turn in range(len(turns))]
        apart = players.students.apart if parallel.world() == 1 else ()
        descend(players.student_descent, jobs, apart, players.students.light)
        logits, each = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return each.mean(), logits

    mean, logits = call(f"learn {calm}", program, x, answer)
    return mean, logits


def noise(generator: Generator | DCGenerator, images: int, kind: Noise = "normal") -> Tensor:
    """Return this rank's share of fresh noise vectors (b, d) for a generator."""
    make = torch.randn if kind == "normal" else torch.rand
    weight = generator.linear.weight
    return make(parallel.shard(images), weight.shape[1], device=weight.device)


def make(players: Players, oracle: Oracle, sizes: Sequence[int], kind: Noise = "normal") -> list[Tensor]:
    """Return fresh images of the generator as the target will see them, a batch of each size."""

    def program(z: Tensor) -> tuple[Tensor]:
        return (oracle.spec.quantise(players.generator(z)),)

    with torch.no_grad():
        return [x for size in sizes for x in call("make", program, noise(players.generator, size, kind))]


def ask(players: Pupils, oracle: Oracle, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Ask batches in one question now; return each with its answers over the students' outputs.

    Each is waited for when it is taken: the students learn the first while a service answers the rest.
    """
    answers = oracle.begin(batches)
    if players.students.seen is not None:  # which outputs there are must not depend on who is quick
        answers = iter(
            torch.split(told(players.students, torch.cat(list(answers))), [len(x) for x in batches])
        )
    return zip(batches, answers, strict=True)


def climb_by_asking(
    players: Players, oracle: Oracle, loss: Loss, images: int, *, directions: int, radius: float
) -> Tensor:
    """Let the generator ascend the students' loss, its gradient estimated by forward differences.

    On images before tanh, so that none leaves the bounds, and in true float32: steps this small are
    lost in the rounding of tf32 and bf16. Asks (directions + 1) · images.
    """
    u = players.generator.preactivation(noise(players.generator, images))
    at: list[Tensor] = []

    @torch.no_grad()
    def values(points: Tensor) -> Tensor:
        x = oracle.spec.quantise(players.generator.activate(points))
        answer = told(players.students, oracle(x))
        each = loss(players.students(x), answer).mean(0)
        at.append(each[: len(u)].mean())
        return each

    with exact(u.device):
        gradient = forward_differences(values, full(u.detach()), directions=directions, radius=radius)
    descend(players.generator_descent, -(full(u) * gradient).sum() / len(u))
    return at[0]


def classes_of(students: Students, logits: Tensor) -> Tensor:
    """Return the number of classes, those seen so far where it is unknown, as a tensor."""
    if students.seen is None:
        return torch.full((), logits.shape[2], dtype=logits.dtype, device=logits.device)
    return (students.seen.ids >= 0).sum().clamp_min(2).to(logits.dtype)
