"""K students as one network, their running average, and the classifier that they make together."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent import parallel
from dualstudent.errors import UserError
from dualstudent.networks.classifiers import classifier, lighter, shares
from dualstudent.numerics import full
from dualstudent.programs import known

MASKED = -1e4  # logit of a class not seen yet: probability zero, and the same for every student


class Classes(nn.Module):
    """The classes seen so far of a target whose number of classes is unknown (Dual Student, section 4).

    The target's class ids in order of first appearance; addresses and shapes never change.
    """

    ids: Tensor

    def __init__(self, most: int) -> None:
        super().__init__()
        self.register_buffer("ids", torch.full((most,), -1))

    def learn(self, answer: Float[Tensor, "b k"]) -> Float[Tensor, "b m"]:
        """Return one-hot rows over our own indices, handing out new ones. Raises UserError if full."""
        labels = answer.argmax(1)
        everywhere = parallel.gather(labels)  # all ranks hand out the same indices
        fresh = everywhere[~torch.isin(everywhere, self.ids)].tolist()
        new = list(dict.fromkeys(fresh))
        seen = int((self.ids >= 0).sum())
        if seen + len(new) > len(self.ids):
            raise UserError(f"the target has more than {len(self.ids)} classes: raise --max-classes")
        self.ids[seen : seen + len(new)] = torch.tensor(new, dtype=self.ids.dtype, device=self.ids.device)
        return (labels[:, None] == self.ids).to(answer.dtype)

    def forward(self, logits: Float[Tensor, "s b m"]) -> Float[Tensor, "s b m"]:
        return logits.masked_fill(self.ids < 0, MASKED)


class Students(nn.Module):
    """K classifiers of one architecture: images (b, c, h, w) to logits (s, b, k).

    `first`, where given, is a trained member that takes the first place and is the clone alone.
    """

    def __init__(
        self,
        arch: str,
        shape: tuple[int, int, int],
        outputs: int,
        count: int,
        *,
        seen: Classes | None = None,
        first: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.arch, self.shape, self.outputs, self.seen = arch, shape, outputs, seen
        members = [classifier(arch, shape, outputs) for _ in range(count - (first is not None))]
        self.members = nn.ModuleList(members if first is None else [first, *members])
        self.judged = count if first is None else 1

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "s b k"]:
        logits = full(torch.stack([member(x) for member in self.members]))
        return logits if self.seen is None else self.seen(logits)

    @torch.no_grad()
    def renew(self, index: int) -> list[Tensor]:
        """Give a member fresh weights, the same on all ranks; return its parameters.

        With a little noise: a network of others may seed itself, and would be the same again.
        """
        member = self.members[index]
        fresh = classifier(self.arch, self.shape, self.outputs).state_dict()
        for name, value in member.state_dict().items():
            value.copy_(fresh[name])
            if value.ndim > 1:
                value.add_(0.1 * value.std(correction=0) * torch.randn_like(value))
        parallel.average([value for value in member.state_dict().values() if value.is_floating_point()])
        return list(member.parameters())

    def learning(self, calm: bool) -> None:
        """Go into training mode; where `calm`, BatchNorms take and keep their running statistics."""
        self.train()
        for part in self.modules() if calm else ():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the members one by one: those of one architecture share one program."""
        for member in self.members:
            member.compile(*args, **options)

    @property
    def apart(self) -> list[nn.Module]:
        """Return the members where they may learn at once: several of ours, not compiled, on a CPU.

        Those of others may draw random numbers, and then in which order? Wide ones gain nothing by it.
        """
        ours = known(self.members) and shares(self.arch, self.shape)
        plain = all(member._compiled_call_impl is None for member in self.members)
        on_cpu = next(self.parameters()).device.type == "cpu"
        return list(self.members) if ours and plain and on_cpu and len(self.members) > 1 else []

    @property
    def light(self) -> bool:
        """Return whether a member is small enough to compute in one thread."""
        return ":" not in self.arch and lighter(self.arch, self.shape) == 1

    def in_turns(self, x: Float[Tensor, "b c h w"]) -> list[Callable[[], Float[Tensor, "s b k"]]]:
        """Return what gives the logits of a few students: on a CPU of one, which needs no other's graph."""
        if x.device.type != "cpu":
            return [partial(self, x)]

        def one(member: nn.Module) -> Tensor:
            logits = full(member(x)[None])
            return logits if self.seen is None else self.seen(logits)

        return [partial(one, member) for member in self.members]


class Clone(nn.Module):
    """The extracted model: images (b, c, h, w) to the mean logits (b, k) of its students."""

    def __init__(self, students: Students) -> None:
        super().__init__()
        self.arch, self.outputs, self.seen = students.arch, students.outputs, students.seen
        self.students = nn.ModuleList(list(students.members)[: students.judged])

    @property
    def ids(self) -> Tensor | None:
        """The target's class id of each output, −1 for one not seen; None where they are the same."""
        return None if self.seen is None else self.seen.ids

    def each(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "s b k"]:
        """Return the logits of each student."""
        logits = torch.stack([student(x) for student in self.students])
        return logits if self.seen is None else self.seen(logits)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.each(x).mean(0)


class Average(nn.Module):
    """An exponential moving average of the students, for evaluation only.

    Every `every`-th call moves it; it is a copy at its first move, and never stands in before that.
    """

    def __init__(self, students: Students, decay: float, every: int) -> None:
        super().__init__()
        self.decay, self.every, self.calls = decay, every, 0
        self.students = copy.deepcopy(students).requires_grad_(False)

    @torch.no_grad()
    def update(self, students: Students) -> None:
        """Count a call and, at its turn, move towards the students; integer buffers are copied."""
        self.calls += 1
        if self.calls % self.every:
            return
        weight = 1.0 if self.calls == self.every else 1 - self.decay
        pairs = zip(self.students.state_dict().values(), students.state_dict().values(), strict=True)
        for mine, theirs in pairs:
            if mine.is_floating_point():
                mine.lerp_(theirs, weight)
            else:
                mine.copy_(theirs)

    def or_else(self, students: Students) -> Students:
        """Return the averaged students, or the given ones where no move was made yet."""
        return self.students if self.calls >= self.every else students

    def get_extra_state(self) -> int:
        """Return the number of calls, for the state dict."""
        return self.calls

    def set_extra_state(self, state: int) -> None:
        """Restore the number of calls."""
        self.calls = state
