"""How good a generator's gradient is: eq. 6 of Dual Student. White box, so for an owner alone.

The true gradient is that of the distance between students and target, whose network must be seen. An
attacker has other ones: of the students' disagreement, free of queries, or forward differences of the
distance, (m + 1) queries an image.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent.losses import cross_entropy, disagreement, l1
from dualstudent.networks import Students
from dualstudent.zeroth import forward_differences

Values = Callable[[Tensor], Tensor]  # images (n, c, h, w) to a number each (n,)


def gradient_quality(
    students: Students,
    target: nn.Module,
    x: Float[Tensor, "b c h w"],
    *,
    hard: bool = False,
    directions: tuple[int, ...] = (1, 10),
    radius: float = 1e-3,
) -> dict[str, dict[str, Any]]:
    """Return, for each gradient that an attacker may have, its distance to the true one (eq. 6) and cosine.

    Means over the images and over the students, each of which has its own true gradient; `target`
    gives logits and is differentiated. `asked` is what the gradients of all images would have cost an
    attacker; an owner charges his own account for the (directions + 1) questions that are made here.
    Distances are 0 (the same direction) to 2. The true gradient is that of ℓ1 of logits, on labels too,
    as the paper's generator has it; with `hard`, forward differences see labels alone: cross-entropy
    with the target's top class. `images` counts those on which neither gradient is zero.
    """
    was = students.training
    students.eval()
    try:
        found: dict[str, list[tuple[float, float, int]]] = {}
        asked: dict[str, int] = {}
        for member in range(len(students.members)):
            distance = _distance(students, target, member, hard=hard)
            true = _gradient(_distance(students, target, member, hard=False), x)
            offers = {"disagreement": _gradient(lambda x: disagreement(students(x)), x)}
            asked["disagreement"] = 0
            for m in directions:
                name = f"forward differences, m = {m}"
                with torch.no_grad():
                    offers[name] = forward_differences(distance, x, directions=m, radius=radius)
                asked[name] = (m + 1) * len(x)
            for name, offer in offers.items():
                found.setdefault(name, []).append(_compare(true, offer))
    finally:
        students.train(was)
    means = {name: [sum(v) / len(v) for v in zip(*values, strict=True)] for name, values in found.items()}
    return {
        name: {"eq6": d, "cosine": c, "images": n, "asked": asked[name]} for name, (d, c, n) in means.items()
    }


def _distance(students: Students, target: nn.Module, member: int, *, hard: bool) -> Values:
    def distance(x: Tensor) -> Tensor:
        mine, theirs = students(x)[member][None], target(x)
        if hard:
            label = F.one_hot(theirs.argmax(1), theirs.shape[1]).to(theirs.dtype)
            return cross_entropy(mine, label)[0]
        return l1(mine, theirs - theirs.mean(1, keepdim=True))[0]

    return distance


def _gradient(values: Values, x: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    [gradient] = torch.autograd.grad(values(leaf).sum(), leaf)
    return gradient


def _compare(true: Tensor, offer: Tensor) -> tuple[float, float, int]:
    """Return the mean distance of unit gradients, and their mean cosine; a zero gradient has neither."""
    a, b = (F.normalize(g.flatten(1), dim=1) for g in (true, offer))
    known = (a.norm(dim=1) > 0) & (b.norm(dim=1) > 0)
    a, b = a[known], b[known]
    if not len(a):
        return math.nan, math.nan, 0
    return (a - b).norm(dim=1).mean().item(), (a * b).sum(1).mean().item(), len(a)
