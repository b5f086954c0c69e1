"""Signs of collapse: answers all of one class, students that see nothing. What to do about the latter."""

import math

import torch
from torch import Tensor

from dualstudent import parallel
from dualstudent.memory import Memory
from dualstudent.methods.game import Pupils
from dualstudent.networks.ensemble import MASKED

COLLAPSE = 0.9  # share of one class among all answers that is a collapse
STILL = 1e-4  # deviation of logits over a batch below which a student sees nothing


def evenness(classes: Tensor) -> Tensor:
    """Return the entropy of the classes answered, in units of that of an even spread."""
    share = classes / classes.sum()
    return -torch.xlogy(share, share).sum() / math.log(len(classes))


def lopsided(memory: Memory) -> bool:
    """Return whether the target has answered one class to nearly everything."""
    classes = memory.classes()
    return bool(classes.max() >= COLLAPSE * classes.sum())


def nearer(x: Tensor, memory: Memory) -> Tensor:
    """Return images, every other one blended with what was answered otherwise where that is seldom."""
    if lopsided(memory):
        other, _ = memory.draw_even(len(x[::2]))
        x[::2] = x[::2].lerp(other.to(x.dtype), torch.rand_like(other[:, :1, :1, :1]))
    return x


def renew(state: Pupils, logits: Tensor, answer: Tensor) -> int:
    """Give fresh weights to students whose logits (s, b, k) do not depend on the image, though answers do;
    return how many: the one wait for a GPU in a step.
    """
    if len(answer) < 2:
        return 0
    seen = logits.masked_fill(logits <= MASKED / 2, 0.0)
    still = (seen.std(1).amax(1) < STILL) & (answer.std(0).amax() > STILL)
    found = [i for i, flag in enumerate(still.tolist()) if parallel.total(flag) == parallel.world()]
    for index in found:
        for weight in state.students.renew(index):
            for moment in state.student_descent.state[weight].values():
                moment.zero_()  # in place: captured programs know the address
    return len(found)
