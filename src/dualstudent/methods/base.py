"""What a method is: a frozen recipe that makes a state and a list of phases of known cost."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent import parallel
from dualstudent.data import Images
from dualstudent.errors import UserError, unknown
from dualstudent.networks import Clone, smallest, suited
from dualstudent.networks.classifiers import Shape
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Spec
from dualstudent.threads import at_once, one_thread

Rate = Annotated[float, tyro.conf.arg(name="learning-rate")]  # --rate is that of a service, images a second
Schedule = Callable[[float], float]  # progress in [0, 1) -> factor on the learning rates
Metrics = Mapping[str, Tensor]  # scalars are logged; what has more axes is kept for the next evaluation


@runtime_checkable
class State(Protocol):
    """Everything that changes during a run: a dataclass of modules and optimisers, nothing else."""

    @property
    def clone(self) -> Clone:
        """The extracted model as it stands."""


S = TypeVar("S", bound=State)
M = TypeVar("M", bound="Method[Any]")


def constant(progress: float) -> float:
    """Leave the learning rates as they are."""
    return 1.0


@dataclass(frozen=True)
class Phase(Generic[S]):
    """`steps` equal steps that ask `cost` images each, exactly: the engine checks."""

    name: str
    step: Callable[[S, Oracle], Metrics]
    steps: int
    cost: int
    schedule: Schedule = constant


@dataclass(frozen=True)
class Method(ABC, Generic[S]):
    """A recipe: a frozen dataclass whose fields are its options and its record.

    `needs` is the least a target must reveal; of the `presets`, the first is the default. `data_free`
    says whether it can do without images of others: what a recipe asks of them is `outside`.
    """

    name: ClassVar[str]
    needs: ClassVar[Access]
    data_free: ClassVar[bool]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    procedural: ClassVar[bool] = False  # whether what it asks comes from a procedural prior
    bounded: ClassVar[bool] = False  # whether its steps record what the bound of eq. 4 is checked on
    larger: ClassVar[bool] = False  # whether student `auto` is more than the smallest that fits
    remainder: ClassVar[int] = 0  # images of a budget that may stay unspent: one less than a pair, say

    @classmethod
    def preset(cls: type[M], name: str) -> M:
        """Return the recipe of a preset. Raises UserError on an unknown name."""
        if name not in cls.presets:
            raise unknown("preset", name, cls.presets)
        return cls(**cls.presets[name])

    @property
    @abstractmethod
    def queries_per_step(self) -> int:
        """Images asked in a full step."""

    @abstractmethod
    def init(self, spec: Spec) -> S:
        """Return a fresh state for a target, on torch's default device. Raises UserError."""

    @abstractmethod
    def phases(self, budget: int, done: int = 0) -> Sequence[Phase[S]]:
        """Return the plan for the queries from `done` to `budget`. Raises UserError."""

    def suits(self, shape: Shape) -> str:
        """Return the architecture that student `auto` is for images of a shape."""
        return suited(shape) if self.larger else smallest(shape)

    def outside(self, spec: Spec) -> Images | None:
        """Return the images of others that are asked; None for a data-free recipe. Raises UserError."""
        return None

    def at_least(self, **least: int | float) -> None:
        """Raise UserError for the first field that is below its least value."""
        for name, value in least.items():
            if not value <= getattr(self, name) < math.inf:
                raise UserError(
                    f"{option(name)} {getattr(self, name)}: it must be at least {value} and finite"
                )

    def plausible(self) -> None:
        """Raise UserError for values that no recipe can mean, in fields that several methods have."""
        values = {
            name: getattr(self, name, None)
            for name in (*_SHARES, *_BELOW_ONE, *_POSITIVE, *_MOST, "diversity")
        }
        for name, value in values.items():
            if value is None:
                continue
            flag, most = name.replace("_", "-"), "1" if name in _SHARES else "below 1"
            each = value if isinstance(value, tuple) else (value,)
            if name in _SHARES and not all(0 <= v <= 1 for v in each):
                raise UserError(f"--{flag} {' '.join(f'{v:g}' for v in each)}: shares, 0 to {most}")
            if name in _BELOW_ONE and not 0 <= value < 1:
                raise UserError(f"--{flag} {value:g}: it must be at least 0 and {most}")
            if name in _POSITIVE and not 0 < value < math.inf:
                raise UserError(f"--{flag} {value:g}: it must be above 0 and finite")
            if name in _MOST and not value <= _MOST[name]:
                raise UserError(f"--{flag} {value:g}: it must be at most {_MOST[name]}")
            if name == "diversity" and not 0 <= value < math.inf:
                raise UserError(f"--{flag} {value:g}: it must be at least 0 and finite")


_SHARES, _POSITIVE = ("drops", "grey"), ("radius",)
_MOST = {"stride": 1, "grain": 1}  # the range of pixels
_BELOW_ONE = ("momentum", "average", "first", "blind", "after", "calm")


def option(name: str) -> str:
    """Return the command line's option for a field of a method."""
    return "--learning-rate" if name == "rate" else "--" + name.replace("_", "-")


def steps_down(*at: float, factor: float = 0.3) -> Schedule:
    """Return the schedule that multiplies the rates by `factor` at each of the given progresses."""
    return lambda progress: factor ** sum(progress >= point for point in at)


def cosine(progress: float) -> float:
    """Take the learning rates down to zero along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Return a schedule of rates that are lower by a factor."""
    return lambda progress: factor * schedule(progress)


def cut(schedule: Schedule, start: float, stop: float) -> Schedule:
    """Return the part of a schedule between two progresses, as a schedule of its own."""
    return lambda progress: schedule(start + progress * (stop - start))


def split(images: int, batch: int, least: int = 2) -> list[int]:
    """Cut a number of images into batches as equal as can be; none over `batch`, unless one would be
    under `least`.
    """
    batches = max(1, min(-(-images // batch), images // least))
    return [images // batches + (i < images % batches) for i in range(batches)]


def spend(
    step: Callable[[S, Oracle, Sequence[int]], Metrics],
    budget: int,
    done: int,
    *,
    batch: int,
    batches: int,
    besides: int = 0,
    rest: Callable[[S, Oracle, Sequence[int]], Metrics] | None = None,
    schedule: Schedule = constant,
) -> list[Phase[S]]:
    """Plan steps of `batches` batches of `batch` images that spend a budget to the last query.

    A step asks `besides` more images by itself. What does not fill a step is asked in a last, smaller
    one (`rest`, by default the same step), which asks nothing besides; a single image over (with
    several ranks: fewer than two for each) joins the step before it, since one image has no batch
    statistics. The schedule runs over 0 … budget. Raises UserError for fewer than two queries.
    """
    left, full, least = budget - done, batch * batches + besides, 2 * parallel.world()
    if min(left, batch) < least:
        what = f"{left} queries" if left < least else f"batches of {batch}"
        raise UserError(f"{what}: at least {least} are needed (batch statistics of one image do not exist)")
    steps, over = divmod(left, full)
    if 0 < over < least and steps:
        steps, over = steps - 1, over + full
    plan: list[Phase[S]] = []
    turn = (done + steps * full) / budget
    last = split(over, batch, least) if over else []
    for name, do, count, sizes, more, start, stop in (
        ("steps", step, steps, [batch] * batches, besides, done / budget, turn),
        ("rest", rest or step, int(over > 0), last, 0, turn, 1.0),
    ):
        if count:
            plan.append(
                Phase(
                    name,
                    lambda state, oracle, do=do, sizes=sizes: do(state, oracle, sizes),  # type: ignore[misc]
                    count,
                    sum(sizes) + more,
                    cut(schedule, start, stop),
                )
            )
    return plan


def descend(
    optimiser: torch.optim.Optimizer,
    loss: Float[Tensor, ""] | Sequence[Callable[[], Tensor]],
    apart: Sequence[nn.Module] = (),
    light: bool = True,
) -> None:
    """Step down a loss, with gradients into the optimiser's own parameters only, mean over ranks.

    Of several the sum counts: each is computed, and its graph freed, in its turn; those of modules
    `apart`, which share nothing, at once where that is allowed, `light` or not (`threads.at_once`).
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.zero_grad(set_to_none=True)

    def back(loss: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
        loss().backward(inputs=inputs)  # type: ignore[no-untyped-call]

    losses = [lambda: loss] if isinstance(loss, Tensor) else loss
    each = [list(module.parameters()) for module in apart] or [parameters] * len(losses)
    jobs = [partial(back, *pair) for pair in zip(losses, each, strict=True)]
    if apart:
        at_once(jobs, light)
    else:
        for job in jobs:
            job()
    parallel.average_gradients(parameters)
    with one_thread():
        optimiser.step()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Want no gradients into a module's parameters: a compiled backward pass has them all otherwise."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def optimisers(state: State) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a state, in the order of its fields."""
    return [value for value in _parts(state) if isinstance(value, torch.optim.Optimizer)]


def modules(state: State) -> list[torch.nn.Module]:
    """Return the modules of a state, in the order of its fields."""
    return [value for value in _parts(state) if isinstance(value, torch.nn.Module)]


def _parts(state: State) -> list[Any]:
    return [getattr(state, field.name) for field in fields(state)]  # type: ignore[arg-type]


def pace(state: State, factor: float) -> None:
    """Set every learning rate to its initial value times a factor."""
    for optimiser in optimisers(state):
        for group in optimiser.param_groups:
            rate = group.setdefault("initial_lr", group["lr"]) * factor
            if isinstance(group["lr"], Tensor):  # where a captured program finds it
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def slow(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Multiply an optimiser's learning rates of this step by a factor."""
    for group in optimiser.param_groups:
        group["lr"] *= factor


def capturable(state: State, device: str | torch.device) -> None:
    """Let the optimisers of a state be captured: learning rates in tensors on the device."""
    for optimiser in optimisers(state):
        for group in optimiser.param_groups:
            rate = float(group["lr"])
            group.setdefault("initial_lr", rate)
            group["lr"] = torch.tensor(rate, device=device)
            if "capturable" in group:
                group["capturable"] = True
