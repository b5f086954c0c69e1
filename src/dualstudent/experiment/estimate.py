"""What a run will spend and how long it will take, before the first query."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

from dualstudent import engine, parallel
from dualstudent.experiment.core import facing
from dualstudent.ledger import Account
from dualstudent.methods import Method
from dualstudent.numerics import AUTO, Numerics
from dualstudent.oracle import Oracle
from dualstudent.spec import Labels, Target

TIMED = 3  # steps timed, after one to warm up


@dataclass(frozen=True)
class Estimate:
    """The plan of a run: (name, steps, images a step) of each phase, and the expected time.

    `audit` images were shown to the target to time it.
    """

    phases: list[tuple[str, int, int]]
    queries: int
    seconds: float
    audit: int


def estimate(
    method: Method[Any],
    target: Target,
    *,
    queries: int,
    labels: Labels = "soft",
    device: str = "cpu",
    numerics: Numerics = AUTO,
) -> Estimate:
    """Plan a run and time a few of its steps on a scratch state. Raises UserError.

    The images that the timing shows to the target are charged to an account of their own.
    """
    asked = facing(target, labels)
    engine.check(method, asked.spec)
    phases = engine.plan(method, [queries])
    account = Account("audit")
    oracle = Oracle(asked, account)
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
    shape = [(phase.name, phase.steps, phase.cost) for phase in phases]
    return Estimate(shape, sum(steps * cost for _, steps, cost in shape), seconds, account.asked)
