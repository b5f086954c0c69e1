"""The bound of Dual Student's eq. 4, computed again from what a run recorded: a lie detector.

‖S1 − S2‖ ≤ ‖S1 − T‖ + ‖S2 − T‖ holds for any images, so a recipe can only seem to break it by
measuring its terms on different things: other images, other answers, another space. So every term
is traced to its origin: images and answers to the oracle's exchange, logits to the students as they
were before the step. Each fault is named.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualstudent.ledger import digest
from dualstudent.losses import cross_entropy, disagreement, l1, recover_logits
from dualstudent.methods import Metrics, State
from dualstudent.networks import Students
from dualstudent.networks.ensemble import MASKED
from dualstudent.numerics import AUTO, Numerics
from dualstudent.oracle import Exchange
from dualstudent.spec import Access, Spec

TOLERANCE = 1e-4  # relative, for float32 sums
ROUNDING = {"fp32": 1e-3, "tf32": 0.05, "bf16": 0.2}  # relative, for logits computed a second time


@dataclass(frozen=True)
class Witness:
    """What tells whether a step's record is true: students before it, exchanges in it.

    `ids` are the target's classes after the step, where their number is unknown.
    """

    students: Students
    asked: Sequence[Exchange]
    ids: Tensor | None = None
    numerics: Numerics = AUTO

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the students' logits on a batch, in training mode as in the step."""
        with self.numerics.casting(x.device):
            return self.students(x)  # type: ignore[no-any-return]


def before(state: State) -> Students | None:
    """Return a copy of a state's students, to be a witness of the next step; None if it has none."""
    students = getattr(state, "students", None)
    return copy.deepcopy(students) if isinstance(students, Students) else None


def bound(metrics: Metrics, spec: Spec, witness: Witness | None = None) -> dict[str, Any] | None:
    """Return gap, error, tightness and faults of a step of Dual Student; None for other methods.

    On the step's first batch, before the students learnt it: `gap` is the mean ‖Si − Sj‖ over pairs,
    `error` the mean ‖Si − T‖ + ‖Sj − T‖, `tightness` their quotient, in [0, 1] (None if both are
    0). On probabilities the distance is ℓ1 / k of logits; on labels it is whether the labels differ.
    """
    if "student/logits" not in metrics:
        return None
    logits, answers = metrics["student/logits"].double(), metrics["student/answers"].double()
    hard = spec.access == Access.LABEL
    if hard:
        labels, votes = answers.argmax(1), logits.argmax(2)
        distances = (votes != labels).double()
        pairs = torch.triu_indices(len(votes), len(votes), offset=1)
        apart = (votes[pairs[0]] != votes[pairs[1]]).double().mean(0)
        loss = cross_entropy(logits, answers).mean()
    else:
        distances = l1(logits, recover_logits(answers.float()).double())
        apart = disagreement(logits)
        loss = distances.mean()
    gap, error = apart.mean().item(), 2 * distances.mean().item()
    faults = []
    if not _close(metrics["student/loss"].item(), loss.item()):
        faults.append(
            f"the students' loss was {metrics['student/loss'].item():.4g}, recorded logits and answers give"
            f" {loss.item():.4g}: they are compared in another space"
        )
    if (apart > 2 * distances.mean(0) * (1 + TOLERANCE) + TOLERANCE).any():
        faults.append("the students differ by more than their distances to the target allow")
    faults += _space_faults(logits, hard)
    for who in ("student", "generator"):
        faults += _image_faults(who, metrics, spec)
    faults += _generator_faults(metrics)
    if witness is not None:
        faults += _exchange_faults(metrics, witness)
        for who in ("student", "generator"):
            faults += _origin_faults(who, metrics, witness)
    return {
        "space": "labels" if hard else "logits",
        "gap": gap,
        "error": error,
        "tightness": gap / error if error > 0 else None,
        "faults": faults,
    }


def _space_faults(logits: Tensor, hard: bool) -> list[str]:
    """Check that the students give logits, which have no sum: recovered ones have mean 0."""
    if not hard and (logits.logsumexp(2).abs() < TOLERANCE).all():
        return ["the students give log-probabilities, the target's logits are centred: two spaces"]
    if not hard and ((logits.sum(2) - 1).abs() < TOLERANCE).all() and (logits >= 0).all():
        return ["the students give probabilities, the target's answers are logits: two spaces"]
    return []


def _image_faults(who: str, metrics: Metrics, spec: Spec) -> list[str]:
    """Check that images are such as can be asked."""
    if f"{who}/images" not in metrics:
        return []
    smallest, largest = (value.item() for value in torch.aminmax(metrics[f"{who}/images"]))
    slack = TOLERANCE * (spec.bounds[1] - spec.bounds[0])
    if smallest < spec.bounds[0] - slack or largest > spec.bounds[1] + slack:
        what = {"student": "students learnt", "generator": "generator climbed"}[who]
        return [
            f"the {what} on values in [{smallest:.3g}, {largest:.3g}], the target takes"
            f" [{spec.bounds[0]:g}, {spec.bounds[1]:g}]: not the images that are asked"
        ]
    return []


def _generator_faults(metrics: Metrics) -> list[str]:
    """Check that the generator's loss is eq. 3."""
    if "generator/logits" not in metrics:
        return []
    again = disagreement(metrics["generator/logits"].double()).mean().item()
    if _close(metrics["gap"].item(), again):
        return []
    return [
        f"the generator climbed {metrics['gap'].item():.4g}, recorded logits differ by {again:.4g}:"
        " another space than the students' logits"
    ]


def _exchange_faults(metrics: Metrics, witness: Witness) -> list[str]:
    """Check that the students learnt what was asked, and what was answered, row by row."""
    images, answers = metrics["student/images"], metrics["student/answers"]
    asked = torch.cat([digest(x) for x, _ in witness.asked]) if witness.asked else answers.new_empty(0)
    match = digest(images)[:, None] == asked
    if not match.any(1).all():
        return ["the students learnt images that the target was not asked"]
    if witness.ids is not None:  # rows are as wide as an exchange's largest label
        learnt = witness.ids[answers.argmax(1)][:, None]
        told = torch.cat([answer.argmax(1) for _, answer in witness.asked])[:, None]
    else:
        learnt, told = answers, torch.cat([answer for _, answer in witness.asked])
    if learnt.shape[1] != told.shape[1]:
        return ["the students learnt answers of another width than the target's"]
    same = torch.stack([(row == told).all(1) for row in learnt])
    if not (match & same).any(1).all():  # a target may answer the same image in different ways
        return ["the students learnt answers that are not the target's"]
    return []


def _origin_faults(who: str, metrics: Metrics, witness: Witness) -> list[str]:
    """Check that recorded logits are the students' on the recorded images."""
    if f"{who}/logits" not in metrics or f"{who}/images" not in metrics:
        return []
    images, logits = metrics[f"{who}/images"], metrics[f"{who}/logits"]
    again = witness.logits(images)
    if again.shape == logits.shape:
        known = torch.ones_like(logits, dtype=torch.bool)
        if witness.ids is not None:  # classes that were seen before the step
            known &= again > MASKED / 2
        size = (logits * known).abs().max()
        limit = ROUNDING[witness.numerics.on(images.device).precision]
        if ((again - logits) * known).abs().max() <= limit * size + 1e-6:
            return []
        if not torch.equal(again, witness.logits(images)):
            return []  # networks with a random part, dropout say, cannot be asked a second time
    what = {"student": "learnt with", "generator": "was climbed by"}[who]
    return [f"the {who} step {what} other logits than the students give on its images"]


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + 1e-7
