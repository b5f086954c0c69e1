"""How faithful a clone is to its target on test images: the owner's view, never the attacker's."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dualstudent.data import Images
from dualstudent.errors import UserError
from dualstudent.ledger import Account
from dualstudent.networks import Clone
from dualstudent.oracle import Paid, answered, together
from dualstudent.spec import Access, Spec, Target

BATCH = 500  # images of a forward pass: no result depends on it beyond rounding


def fitting(data: Images, spec: Spec) -> Images:
    """Return test images if the target can take them. Raises UserError."""
    if data.shape != spec.shape:
        raise UserError(f"{data.name} has images of shape {data.shape}, the target takes {spec.shape}")
    if spec.classes is not None and int(data.labels.max()) >= spec.classes:
        raise UserError(f"{data.name} has {len(data.classes)} classes, the target {spec.classes}")
    return data


def inputs(data: Images, spec: Spec) -> Iterator[Float[Tensor, "b c h w"]]:
    """Yield test images as a target's inputs, in batches."""
    for start in range(0, len(data), BATCH):
        yield spec.quantise(spec.encode(data.pixels(start, start + BATCH)))


def ask(target: Target, data: Images, account: Account, paid: Paid | None = None) -> Float[Tensor, "n k"]:
    """Return the target's answers on test images, charged to an account unless `paid` keeps them already.

    Raises TargetError.
    """
    return ask_all(target, inputs(fitting(data, target.spec), target.spec), account, paid)


def ask_all(
    target: Target, batches: Iterable[Tensor], account: Account, paid: Paid | None = None
) -> Float[Tensor, "n k"]:
    """Do as `ask` with batches of the target's inputs (b, c, h, w)."""
    answers: list[Tensor] = []
    for x in batches:
        question = None if paid is None else paid.question(x, sum(map(len, answers)))
        account.charge(len(x), held=0 if question is None else len(x) - question.due)
        with torch.inference_mode():
            parts = (
                iter([(torch.arange(len(x)), answered(target, x))]) if question is None else question.parts()
            )
        answers.append(together(parts, x, target.spec))
    return joined(answers)


def joined(answers: Sequence[Tensor]) -> Float[Tensor, "n k"]:
    """Return answers below each other: those of label-only targets of unknown width may differ in it."""
    wide = max(answer.shape[1] for answer in answers)
    return torch.cat([nn.functional.pad(answer, (0, wide - answer.shape[1])) for answer in answers])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@torch.inference_mode()
def logits(clone: Clone, data: Images, spec: Spec) -> Float[Tensor, "s n k"]:
    """Return each student's logits on test images."""
    with evaluating(clone.students):
        return torch.cat([clone.each(x) for x in inputs(data, spec)], dim=1)


def fidelity(
    each: Float[Tensor, "s n k"],
    answers: Float[Tensor, "n j"],
    data: Images,
    *,
    access: Access,
    ids: Int64[Tensor, "k"] | None = None,
) -> dict[str, Any]:
    """Return accuracy, agreement with its 95 % interval, κ, ℓ1 and KL of a clone; see docs/methods.

    `each` holds the students' logits, `answers` the target's rows, `ids` the target's class of each
    output. ℓ1 (0 … 2) and KL (nats) compare probabilities and are None for a label-only target.
    """
    mean = each.mean(0)
    guess, truth = _named(mean.argmax(1), ids), answers.argmax(1)
    labels = data.labels.to(guess.device)
    hits = guess == truth
    agreement = hits.double().mean().item()
    divergence = dict.fromkeys(("l1", "kl"))
    if access == Access.PROBS and ids is None:
        log_p, log_q = answers.double().clamp_min(1e-38).log(), mean.double().log_softmax(1)
        divergence["l1"] = (answers.double() - log_q.exp()).abs().sum(1).mean().item()
        divergence["kl"] = (answers.double() * (log_p - log_q)).sum(1).mean().item()
    return {
        "target_accuracy": _share(truth == labels),
        "accuracy": _share(guess == labels),
        "accuracy_each": [_share(_named(one.argmax(1), ids) == labels) for one in each],
        "agreement": agreement,
        "agreement_ci": wilson(int(hits.sum()), len(hits)),
        "agreement_each": [_share(_named(one.argmax(1), ids) == truth) for one in each],
        "kappa": cohen(guess, truth),
        "per_class": [
            {
                "class": data.classes[c] if c < len(data.classes) else str(c),
                "images": int((truth == c).sum()),
                "agreement": _share(hits[truth == c]),
                "accuracy": _share((guess == labels)[labels == c]),
            }
            for c in range(max(len(data.classes), int(truth.max()) + 1))
        ],
        **divergence,
    }


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> list[float]:
    """Return Wilson's score interval [low, high] of a share (Wilson 1927), 95 % by default."""
    if n == 0:
        return [0.0, 1.0]
    p = hits / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))]


def cohen(a: Int64[Tensor, "n"], b: Int64[Tensor, "n"]) -> float | None:
    """Return Cohen's κ of two labellings (Cohen 1960): None where chance alone agrees fully."""
    width = int(max(a.max(), b.max())) + 1
    by_chance = (_frequencies(a, width) * _frequencies(b, width)).sum().item()
    agreement = (a == b).double().mean().item()
    return None if by_chance >= 1 else (agreement - by_chance) / (1 - by_chance)


def _frequencies(labels: Tensor, width: int) -> Tensor:
    return labels.clamp_min(0).bincount(minlength=width).double() / len(labels)


def _named(index: Tensor, ids: Tensor | None) -> Tensor:
    return index if ids is None else ids[index]


def _share(hits: Tensor) -> float | None:
    return hits.double().mean().item() if len(hits) else None
