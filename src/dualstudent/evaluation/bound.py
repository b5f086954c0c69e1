"""The bound of Dual Student's eq. 4, recomputed from what a run recorded: a lie detector.

‖S1 − S2‖ ≤ ‖S1 − T‖ + ‖S2 − T‖ holds for any images, so a recipe can only seem to break it by
measuring its terms on different things: other images, another space. Each such fault is named.
"""

from typing import Any

import torch

from dualstudent.losses import cross_entropy, disagreement, l1, recover_logits
from dualstudent.methods import Metrics
from dualstudent.spec import Access, Spec

TOLERANCE = 1e-4  # relative, for float32 sums


def bound(metrics: Metrics, spec: Spec) -> dict[str, Any] | None:
    """Return gap, error, tightness and faults of a step of Dual Student; None for other methods.

    On the last batch asked, before the students learnt it: `gap` is the mean ‖Si − Sj‖ over pairs,
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
    faults += _generator_faults(metrics, spec)
    return {
        "space": "labels" if hard else "logits",
        "gap": gap,
        "error": error,
        "tightness": gap / error if error > 0 else None,
        "faults": faults,
    }


def _generator_faults(metrics: Metrics, spec: Spec) -> list[str]:
    """Check the generator step: its images are such as can be asked, its loss is eq. 3."""
    if "generator/images" not in metrics:
        return []
    faults = []
    smallest, largest = (value.item() for value in torch.aminmax(metrics["generator/images"]))
    slack = TOLERANCE * (spec.bounds[1] - spec.bounds[0])
    if smallest < spec.bounds[0] - slack or largest > spec.bounds[1] + slack:
        faults.append(
            f"the generator climbed on values in [{smallest:.3g}, {largest:.3g}], the target takes"
            f" [{spec.bounds[0]:g}, {spec.bounds[1]:g}]: not the images that are asked"
        )
    again = disagreement(metrics["generator/logits"].double()).mean().item()
    if not _close(metrics["gap"].item(), again):
        faults.append(
            f"the generator climbed {metrics['gap'].item():.4g}, recorded logits differ by {again:.4g}:"
            " another space than the students' logits"
        )
    return faults


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + 1e-7
