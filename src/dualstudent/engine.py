"""run(): the one loop. Phases of known cost, seeded steps, exact bill, snapshots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic, TypeVar

import torch

from dualstudent import parallel
from dualstudent.checkpoint import Snapshots
from dualstudent.desk import Desk
from dualstudent.errors import Stopped, UserError
from dualstudent.ledger import Account, Shown
from dualstudent.methods import Method, Metrics, Phase, State
from dualstudent.methods.base import capturable, modules, pace
from dualstudent.numerics import AUTO, Numerics
from dualstudent.oracle import Exchange, Oracle
from dualstudent.programs import Graphs, Programs, known
from dualstudent.spec import Spec, Target

S = TypeVar("S", bound=State)
INIT = 0  # the step number that seeds initial weights; the first step is 1


@dataclass(frozen=True)
class Moment(Generic[S]):
    """What a watcher sees after each step."""

    step: int  # number of the step, from 1
    steps: int  # steps of the whole run
    spent: int
    state: S
    metrics: Metrics
    asked: Sequence[Exchange] = ()  # what this rank's oracle was shown in the step, and answered


Watch = Callable[[Moment[Any]], bool]  # returns whether to stop here


def check(method: Method[Any], spec: Spec) -> None:
    """Raise UserError where a target reveals less than a method needs."""
    if spec.access < method.needs:
        raise UserError(
            f"{method.name} needs {method.needs.name} of a target, this one reveals {spec.access.name} only"
        )


def plan(method: Method[S], budgets: Sequence[int]) -> list[Phase[S]]:
    """Return the phases of a run whose budget was raised step by step (usually one budget).

    Raises UserError for a budget that the method cannot spend.
    """
    phases: list[Phase[S]] = []
    done = 0
    for budget in budgets:
        if budget <= done:
            raise UserError(f"a budget of {budget} queries: it must be more than the {done} planned before")
        leg = method.phases(budget, done)
        cost = sum(phase.steps * phase.cost for phase in leg)
        if not 0 <= budget - done - cost <= method.remainder:
            raise RuntimeError(f"{method.name} plans {cost} images for a budget of {budget - done}")
        phases += leg
        done += cost
    return phases


def fresh(method: Method[S], spec: Spec, *, seed: int = 0, device: str | torch.device = "cpu") -> S:
    """Return a method's state before its first step: weights alike on all ranks, channels last."""
    parallel.seed_step(seed, INIT, 0)
    with torch.device(device):
        state = method.init(spec)
    for module in modules(state):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return state


def run(
    method: Method[S],
    target: Target,
    account: Account,
    *,
    budgets: Sequence[int],
    seed: int = 0,
    device: str | torch.device = "cpu",
    shown: Shown | None = None,
    snapshots: Snapshots | None = None,
    numerics: Numerics = AUTO,
    watch: Watch = lambda moment: False,
    resumed: Callable[[int, Any], None] = lambda step, state: None,
    desk: Desk | None = None,
) -> S:
    """Extract a target and return the final state.

    Starts from the snapshot if there is one, and tells `resumed` step and state; saves one before the
    first query, when due, when `watch` wants to stop (raising Stopped), and at the end. With a `desk`
    answers that its journal holds are not asked again. Raises
    UserError before the first query where method, target and budget do not fit, TargetError,
    Diverged and Overdraft as the oracle does.
    """
    spec = target.spec
    check(method, spec)
    phases = plan(method, budgets)
    numerics = numerics.on(device)
    numerics.apply(device)
    state = fresh(method, spec, seed=seed, device=device)
    compiled = _compiled(phases, numerics)
    for module in modules(state) if any(compiled) else []:
        module.compile()
    if parallel.rank() > 0:
        parallel.meet()  # the first rank sets a damaged snapshot aside
    first = _restored(snapshots, state, account)
    if parallel.rank() == 0:
        parallel.meet()
    if parallel.total(first) != first * parallel.world():
        raise UserError(
            "the ranks read different snapshots: all machines need the same folder of the run, on one disk"
        )
    if first and account.spent != _cost(phases, first):
        raise UserError(
            f"{account.spent} images were asked in {first} steps, which this version plans otherwise: "
            "go on with the version that began the run, or begin anew"
        )
    if desk is not None:
        desk.resumed(account.spent)
    if shown is not None:
        shown.rewind(account.spent)
    resumed(first, state)
    asked: list[Exchange] = []
    oracle = Oracle(target, account, shown, asked, desk)
    programs = _programs(state, device, any(compiled))
    total = sum(phase.steps for phase in phases)
    step = 0
    for phase, worthwhile in zip(phases, compiled, strict=True):
        for i in range(phase.steps):
            step += 1
            if step <= first:
                continue
            parallel.seed_step(seed, step, parallel.rank())
            pace(state, phase.schedule(i / phase.steps))
            before = account.spent
            asked.clear()
            with numerics.casting(device), programs.running(worthwhile):
                metrics = phase.step(state, oracle)
            if account.spent - before != phase.cost:
                raise RuntimeError(f"step {step} asked {account.spent - before} images, plan: {phase.cost}")
            parallel.average([b for m in modules(state) for b in m.buffers() if b.is_floating_point()])
            with programs.running(False):  # who watches has batches of other sizes
                wish = watch(Moment(step, total, account.spent, state, metrics, asked))
                stop = parallel.total(int(wish)) > 0
            mine = snapshots if parallel.rank() == 0 else None  # the state is the same on all ranks
            if mine is not None and (stop or mine.due or step == total):
                mine.save(step, state, account)
            if stop and step < total:
                raise Stopped(f"stopped after {account.spent} queries")
    return state


def _cost(phases: Sequence[Phase[Any]], steps: int) -> int:
    """Return the queries of a plan's first steps."""
    total = 0
    for phase in phases:
        total += phase.cost * min(steps, phase.steps)
        steps -= min(steps, phase.steps)
    return total


def _programs(state: State, device: str | torch.device, compiled: bool) -> Programs:
    """Return how networks are called: captured too, on a GPU, unless several ranks meet in a step."""
    alone = torch.device(device).type == "cuda" and parallel.world() == 1
    if not (compiled and alone and known(modules(state))):
        return Programs(compiled)
    capturable(state, device)
    return Programs(compiled, Graphs(device))


def _compiled(phases: Sequence[Phase[Any]], numerics: Numerics) -> list[bool]:
    """Return which phases are compiled: those in a row that only learn count as one."""
    found = []
    for asks, group in groupby(phases, key=lambda phase: phase.cost > 0):
        steps = [phase.steps for phase in group]
        found += [numerics.compiles(each if asks else sum(steps)) for each in steps]
    return found


def _restored(snapshots: Snapshots | None, state: State, account: Account) -> int:
    """Return the step that a state was restored to; a run that has not begun gets its first snapshot."""
    if snapshots is None:
        return 0
    step = snapshots.load(state, account)
    if step is None and parallel.rank() == 0:
        snapshots.save(0, state, account)
    return step or 0
