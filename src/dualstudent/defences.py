"""Targets around targets that reveal less. They compose by wrapping."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dualstudent.oracle import Part, asking
from dualstudent.spec import Access, Spec, Target


@dataclass(frozen=True)
class LabelOnly:
    """A target that answers with the top class only, as a one-hot row."""

    inner: Target

    @property
    def spec(self) -> Spec:
        """The inner target's spec with access LABEL."""
        return replace(self.inner.spec, access=Access.LABEL)

    def __call__(self, x: Float[Tensor, "b c h w"], /) -> Float[Tensor, "rows k"]:
        """Return one-hot rows."""
        return self.reveal(self.inner(x))

    def requests(self, x: Float[Tensor, "b c h w"]) -> Iterator[Part]:
        """Start asking; return the parts as they are answered."""
        return ((places, self.reveal(answer)) for places, answer in asking(self.inner, x))

    def reveal(self, answer: Float[Tensor, "b k"]) -> Float[Tensor, "rows k"]:
        """Return what is left of the inner target's answer."""
        return F.one_hot(answer.argmax(1), answer.shape[1]).to(answer.dtype)


def bare(target: Target) -> Target:
    """Return a target without the wrappers around it."""
    while isinstance(target, LabelOnly):
        target = target.inner
    return target


def revealed(target: Target, answer: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return what a target's wrappers leave of an answer of the bare one."""
    return target.reveal(revealed(target.inner, answer)) if isinstance(target, LabelOnly) else answer
