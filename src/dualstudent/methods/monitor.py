"""Signs of collapse: answers all of one class, students that see nothing or all the same; what to do."""

import torch
from torch import Tensor

from dualstudent import parallel
from dualstudent.memory import Memory
from dualstudent.methods.game import Pupils
from dualstudent.networks.ensemble import MASKED

COLLAPSE = 0.9  # share of one class among all answers that is a collapse
FEW = 16  # images that may all be of one class, or seem to be, by chance
PATIENCE = 200  # batches after which a student that still sees one class everywhere has come to a standstill
RENEWED = "saw nothing, what another saw or one class in all"  # a student that is renewed
STILL = 1e-4  # of logits: deviation over a batch of who sees nothing, distance of who sees all the same


def evenness(classes: Tensor, known: bool = True) -> Tensor:
    """Return the entropy of the classes answered, in units of that of an even spread over all of them; over
    those answered, at least two, where it is not known how many there are.
    """
    share = classes / classes.sum()
    even = share.new_tensor(len(share)) if known else (share > 0).sum()
    return -torch.xlogy(share, share).sum() / even.clamp_min(2).log()


def commonest(classes: Tensor) -> Tensor:
    """Return the share of the commonest class among all answers."""
    return classes.max() / classes.sum()


def signs(classes: Tensor, known: bool) -> dict[str, Tensor]:
    """Return what tells a collapse of the answers early, by name."""
    return {"evenness": evenness(classes, known), "commonest": commonest(classes)}


def nearer(x: Tensor, memory: Memory) -> Tensor:
    """Return images; where one class is nearly all of many answers, every other one blended with one that
    was answered, all classes alike.
    """
    classes = memory.classes()
    if len(memory) >= FEW and ((classes > 0).sum() > 1) & (commonest(classes) >= COLLAPSE):
        other, _ = memory.draw_even(len(x[::2]))
        x[::2] = x[::2].lerp(other.to(x.dtype), torch.rand_like(other[:, :1, :1, :1]))
    return x


def renew(state: Pupils, logits: Tensor, answer: Tensor) -> Tensor:
    """Give fresh weights to students whose logits (s, b, k) do not depend on the image, or are those of a
    student before them, or who have learnt for long and see one class in all images, though most are answered
    otherwise; return how many.
    """
    if len(answer) < 2:
        return torch.zeros(())
    seen = logits.masked_fill(logits <= MASKED / 2, 0.0)
    still = seen.std(1).amax(1) < STILL
    apart = torch.stack([(seen - one).abs().amax((1, 2)) for one in seen])
    still |= (apart < STILL).tril(-1).any(1)
    still |= standing(logits.argmax(2), answer.argmax(1)) & (age(state) >= PATIENCE)
    still &= answer.std(0).amax() > STILL
    found = [i for i, flag in enumerate(still.tolist()) if parallel.total(flag) == parallel.world()]
    for index in found:
        for weight in state.students.renew(index):
            for moment in state.student_descent.state[weight].values():
                moment.zero_()  # in place: captured programs know the address
    return torch.tensor(float(len(found)))


def standing(top: Tensor, told: Tensor) -> Tensor:
    """Return which students see one class, (s, b), in a whole batch, most of which is told otherwise, (b)."""
    if len(told) < FEW:
        return torch.zeros(len(top), dtype=torch.bool, device=top.device)
    return (top == top[:, :1]).all(1) & ((told != top[:, :1]).double().mean(1) > 0.5)


def age(state: Pupils) -> Tensor:
    """Return how many batches each student has learnt since its weights were fresh, as AdamW counts them."""
    moments, ages = state.student_descent.state, []
    for member in state.students.members:
        weights = list(member.parameters())
        steps = [moments[w]["step"] for w in weights if "step" in moments.get(w, {})]
        ages.append(torch.stack(steps).max() if steps else torch.zeros((), device=weights[0].device))
    return torch.stack(ages).to(weights[0].device)
