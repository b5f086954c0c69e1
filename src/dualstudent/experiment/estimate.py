"""What a run will spend and how long it will take, before the first query."""

import contextlib
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dualstudent import engine, parallel
from dualstudent.data import Images
from dualstudent.defences import bare
from dualstudent.errors import UserError
from dualstudent.evaluation import fitting, logits
from dualstudent.evaluation.fidelity import BATCH
from dualstudent.experiment.again import facing
from dualstudent.experiment.recorder import evaluation_steps
from dualstudent.ledger import Account
from dualstudent.methods import Method, Phase, State
from dualstudent.numerics import AUTO, Numerics
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Labels, Spec, Target
from dualstudent.targets import ModuleTarget, Pace

TIMED = 3  # steps timed, after one to warm up


@dataclass(frozen=True)
class Estimate:
    """The plan of a run: (name, steps, images a step) of each phase, and the expected time.

    `whole` says whether the target's own time is in `seconds`: that of a network in this process is. Of
    others it is `target_seconds`, where a check has timed them.
    """

    phases: list[tuple[str, int, int]]
    queries: int
    seconds: float
    whole: bool
    target_seconds: float | None = None


class StandIn:
    """A target of made-up answers that takes as long as the real one, which is not asked.

    The time is that of a copy of the target's network with other weights, where it is a network made
    of torch's and our own modules: one that calls a service must not be called.
    """

    def __init__(self, target: Target, classes: int) -> None:
        self.spec, self.classes = target.spec, target.spec.classes or classes
        inner = bare(target)
        self.work: ModuleTarget | None = None
        if isinstance(inner, ModuleTarget) and all(map(_known, inner.module.modules())):
            with contextlib.suppress(Exception):  # what cannot be copied is not timed
                work = copy.deepcopy(inner)
                for weight in work.module.parameters():
                    weight.data.normal_(0, 0.05)
                self.work = work

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return rows of random answers."""
        if self.work is not None:
            with contextlib.suppress(UserError):  # what it says does not matter
                self.work(x)
        made = torch.rand(len(x), self.classes, device=x.device)
        if self.spec.access == Access.LABEL:
            return nn.functional.one_hot(made.argmax(1), made.shape[1]).float()
        return made / made.sum(1, keepdim=True)


def _known(module: nn.Module) -> bool:
    """Return whether a module does what its class says, and the class is torch's or ours."""
    own = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    return not own and type(module).__module__.startswith(("torch.nn.", "dualstudent.networks."))


def _evaluations(state: State, data: Images, spec: Spec, phases: Sequence[Phase[Any]], points: int) -> float:
    """Return the seconds that a run's evaluations will take, timed on a part of the test images."""
    part = data[: 2 * BATCH]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        _ = logits(state.clone, part, spec).sum().item()
        times.append(time.perf_counter() - start)
    count = len(evaluation_steps(phases, points)) + 1
    return count * min(times) * len(data) / len(part)


def estimate(
    method: Method[Any],
    target: Target,
    *,
    queries: int,
    labels: Labels = "soft",
    device: str = "cpu",
    numerics: Numerics = AUTO,
    data: Images | None = None,
    points: int = 20,
    pace: Pace | None = None,
) -> Estimate:
    """Plan a run and time a few of its steps on a scratch state; the target is not asked.

    With `data`, the time of the owner's evaluations on them is in it; `pace` is what a check has found
    of the target's own time. Raises UserError.
    """
    asked = facing(target, labels)
    engine.check(method, asked.spec)
    phases = engine.plan(method, [queries])
    stand_in = StandIn(asked, min(10, getattr(method, "max_classes", 10)))
    oracle = Oracle(stand_in, Account("scratch"))
    numerics = numerics.on(device)
    numerics.apply(device)
    state = engine.fresh(method, asked.spec, device=device)
    seconds = 0.0
    for phase in phases:
        steps = min(phase.steps, TIMED + 1)
        times = []
        for step in range(steps):
            parallel.seed_step(0, step + 1, 0)
            start = time.perf_counter()
            with numerics.casting(device):
                metrics = phase.step(state, oracle)
            _ = [value.sum().item() for value in metrics.values()]  # waits for a GPU
            times.append(time.perf_counter() - start)
        seconds += phase.steps * statistics.median(times[1:] or times)
    if data is not None:
        seconds += _evaluations(state, fitting(data, asked.spec).to(device), asked.spec, phases, points)
    shape = [(phase.name, phase.steps, phase.cost) for phase in phases]
    own = None
    if pace is not None and stand_in.work is None:
        own = sum(steps * pace.seconds(cost) for _, steps, cost in shape if cost)
        own += 0.0 if data is None else pace.seconds(len(data))
    queries = sum(steps * cost for _, steps, cost in shape)
    return Estimate(shape, queries, seconds, stand_in.work is not None, own)
