"""What a target says of itself and what it does: a few images, charged to the audit."""

import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dualstudent import parallel, priors
from dualstudent.data import Images
from dualstudent.errors import UserError
from dualstudent.evaluation.fidelity import ask, joined
from dualstudent.ledger import Account
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Spec, Target
from dualstudent.targets.module import CHUNK, ModuleTarget

IMAGES = 8  # that a check shows: four alone, of which two are the same, and the others at once
ALONE = 4
SAME = 1e-6  # probabilities that differ by less are the same up to rounding


@dataclass(frozen=True)
class Pace:
    """How long a target takes, in seconds: for one image, and for `batch` images asked at once.

    It is given at most `request` images in a request, `lanes` requests at a time, `rate` images a second.
    """

    single: float
    batch: int
    together: float
    request: int = CHUNK
    lanes: int = 1
    rate: float | None = None

    @property
    def images_per_second(self) -> float:
        """Images a second in the batch that was timed."""
        return self.batch / max(self.together, 1e-9)

    def seconds(self, images: int) -> float:
        """Return how long a question of so many images takes: a fixed time a request, and one an image."""
        each = max(0.0, self.together - self.single) / (self.batch - 1)
        fixed = max(0.0, self.single - each)
        requests = math.ceil(images / self.request)
        waves = math.ceil(requests / self.lanes)
        whole = waves * fixed + each * images / min(self.lanes, max(1, requests))
        return max(whole, images / self.rate if self.rate else 0.0)

    @classmethod
    def from_json(cls, values: Any) -> "Pace":
        """Read a pace that a check wrote. Raises UserError."""
        try:
            pace = cls(**values)  # anything that is no mapping fails here too
            if not (
                pace.single > 0 and pace.together > 0 and pace.batch > 1 and pace.request > 0 < pace.lanes
            ):
                raise ValueError("a time that is none")
        except (TypeError, ValueError) as error:
            raise UserError(f"not the pace of a target: {error}") from error
        return pace


@dataclass(frozen=True)
class Findings:
    """What a check saw; `images` were charged to the audit."""

    spec: dict[str, Any]
    mode: str  # eval, or not known for what is no module
    answers: list[tuple[int, float]]  # top class and its probability, an answer each
    pace: Pace
    accuracy: float | None
    images: int
    warnings: list[str] = field(default_factory=list)  # what looks wrong, in plain words

    @property
    def latency_ms(self) -> float:
        """Median time of single images."""
        return 1000 * self.pace.single

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        speed = {"latency_ms": self.latency_ms, "images_per_s": self.pace.images_per_second}
        return {**asdict(self), "answers": [list(answer) for answer in self.answers], **speed}


def check_target(
    target: Target, account: Account, data: Images | None = None, *, images: int = IMAGES
) -> Findings:
    """Ask a target about `images` procedural images, and about test images if given.

    Raises TargetError on an answer that is none.
    """
    if images < ALONE + 2:
        raise UserError(f"--images {images}: at least {ALONE + 2}, some of them alone and some at once")
    spec = target.spec
    oracle = Oracle(target, account)
    alone, others = _probes(images, spec)
    answers, times = [], []
    for x in (*torch.split(alone, 1), others):
        start = time.perf_counter()
        answers.append(oracle(x))
        times.append(time.perf_counter() - start)
    pace = Pace(statistics.median(times[:ALONE]), len(others), times[-1], **_requests(target))
    rows = joined(answers).cpu()
    accuracy = None
    if data is not None:
        guess = ask(target, data, account).argmax(1)
        accuracy = (guess == data.labels).double().mean().item()
    mode = "eval, no gradients" if isinstance(target, ModuleTarget) else "unknown"
    seen = [(int(row.argmax()), float(row.max())) for row in rows]
    return Findings(
        spec.to_json(),
        mode,
        seen,
        pace,
        accuracy,
        account.asked,
        suspicions(rows, spec, softened=getattr(target, "output", None) == "logits"),
    )


def _probes(images: int, spec: Spec) -> tuple[Tensor, Tensor]:
    """Return images to show alone, of which the first two are the same, and others to show at once."""
    parallel.seed_step(0, 0, 0)
    low, high = spec.bounds
    x = low + (high - low) * torch.cat(
        [torch.rand(1, *spec.shape), priors.procedural(images - 2, spec.shape)]
    )
    return torch.cat([x[:1], x[: ALONE - 1]]), x[ALONE - 1 :]


def _requests(target: Target) -> dict[str, Any]:
    """Return how a service is asked, as far as it says so; anything else is asked in chunks."""
    known = {"request": getattr(target, "batch", None), "lanes": getattr(target, "lanes", None)}
    known["rate"] = getattr(target, "rate", None)
    return {name: value for name, value in known.items() if value}


def suspicions(rows: Float[Tensor, "n k"], spec: Spec, *, softened: bool = False) -> list[str]:
    """Return what looks wrong with answers, of which the first two are to the same image.

    `softened` says that a softmax of ours made them.
    """
    found = []
    if spec.access == Access.LABEL:
        found.append("it reveals labels only: extract it with --labels hard")
    drift = (rows[0] - rows[1]).abs().max().item()
    if drift > SAME:
        found.append(
            f"the same image was answered twice, and differently (by up to {drift:.2g}): a randomised"
            " defence, or an unstable model; no run on it can be repeated exactly"
        )
    distinct = rows[1:]
    if (distinct - distinct[0]).abs().max() <= SAME:
        low, high = spec.bounds
        found.append(
            f"{len(distinct)} different images got one and the same answer, class {int(rows[0].argmax())}:"
            f" are its inputs in [{low:g}, {high:g}] (--bounds), and is it the right model?"
        )
    if spec.access != Access.PROBS:
        return found
    if bool(((rows < SAME) | (rows > 1 - SAME)).all()):
        found.append("every probability is 0 or 1: labels, or a model too sure to tell more (--labels hard)")
        return found
    places = decimals(rows)
    if places is not None:
        found.append(f"its probabilities are rounded to {places} decimals: students learn no finer than that")
    logs = rows.clamp_min(1e-38).log()
    if softened and bool((logs.amax(1) - logs.amin(1) <= 1).all()):
        found.append(
            "its answers are as flat as if probabilities had gone through a softmax: if it gives"
            " probabilities, leave --output logits out"
        )
    return found


def decimals(rows: Float[Tensor, "n k"]) -> int | None:
    """Return to how many decimals, 1 to 5, probabilities are rounded; None where they are not."""
    values = rows.double().flatten()
    values = values[(values > SAME) & (values < 1 - SAME)]
    if len(values) < 8:
        return None
    for places in range(1, 6):
        scaled = values * 10**places
        if bool(((scaled - scaled.round()).abs() < 1e-7 * 10**places).all()):
            return places
    return None
