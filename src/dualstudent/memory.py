"""Replay: what was asked and answered, kept to learn it again without asking."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent import parallel
from dualstudent.errors import UserError
from dualstudent.spec import Access, Spec

LEVELS = 255


class Memory(nn.Module):
    """A ring of the last `capacity` exchanges, images in 8 bits, the same on all ranks.

    What is to be remembered is rounded before it is asked (`rounded`), so that the image learnt
    again is the one that was answered. Grows as it fills.
    """

    def __init__(self, capacity: int, spec: Spec) -> None:
        super().__init__()
        self.capacity, self.spec, self.added, self.outputs = capacity, spec, 0, 0
        self.hard = spec.access == Access.LABEL  # then one number an answer, not a row
        self.images = torch.empty(0, *spec.shape, dtype=torch.uint8)
        self.answers = torch.empty(0)
        self.counts = torch.empty(0, dtype=torch.int64)  # of top classes, so as not to count all each time

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def rounded(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return images as they will be remembered."""
        return torch.where(x.isfinite(), self._decoded(self._encoded(x)), x)  # what is none is refused later

    def add(self, x: Float[Tensor, "b c h w"], answer: Float[Tensor, "b k"]) -> None:
        """Keep a batch and its answers, with those of the other ranks; the oldest make room."""
        self.outputs = answer.shape[1]
        images = parallel.gather(self._encoded(x))
        answers = parallel.gather(answer.argmax(1) if self.hard else answer)
        self._room(len(images), answers)
        place = torch.arange(self.added, self.added + len(images), device=x.device) % self.capacity
        oldest = place[len(place) - max(0, min(len(place), self.added + len(place) - self.capacity)) :]
        self._count(self.answers[oldest], -1)
        self._count(answers, 1)
        self.images[place], self.answers[place] = images, answers
        self.added += len(images)

    def draw(self, images: int, grain: float = 0.0) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        """Return this rank's share of a batch of remembered exchanges, drawn with replacement.

        `grain` is the root mean square of noise on its images, in units of the range of pixels.
        """
        rows = torch.randint(len(self), (parallel.shard(images),), device=self.images.device)
        x, answer = self.at(rows)
        low, high = self.spec.bounds
        return (x + grain * (high - low) * torch.randn_like(x) if grain else x), answer

    def draw_even(self, images: int) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        """Return as many exchanges, drawn so that each class answered is as likely as another."""
        weight = 1 / self.classes().clamp_min(1)
        return self.at(torch.multinomial(weight[self._top()], images, replacement=True))

    def at(self, rows: Tensor) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        """Return the remembered exchanges of given rows."""
        answers = self.answers[rows]
        if self.hard:
            answers = F.one_hot(answers, self.outputs).to(torch.get_default_dtype())
        return self._decoded(self.images[rows]).to(answers.dtype), answers

    def classes(self) -> Float[Tensor, "k"]:
        """Return how often each class is the top one of the answers remembered."""
        return self.counts.to(torch.get_default_dtype())

    def _top(self) -> Tensor:
        kept = self.answers[: len(self)]
        return kept if self.hard else kept.argmax(1)

    def _count(self, answers: Tensor, each: int) -> None:
        more = self.outputs - len(self.counts)
        if more > 0:
            self.counts = F.pad(self.counts.to(answers.device), (0, more))
        top = answers if self.hard else answers.argmax(1)
        self.counts.index_add_(0, top, torch.full_like(top, each))

    def _encoded(self, x: Tensor) -> Tensor:
        low, high = self.spec.bounds
        return ((x - low) * (LEVELS / (high - low))).round().clamp(0, LEVELS).to(torch.uint8)

    def _decoded(self, images: Tensor) -> Tensor:
        low, high = self.spec.bounds
        return self.spec.quantise(low + images.to(torch.get_default_dtype()) * ((high - low) / LEVELS))

    def _room(self, more: int, answers: Tensor) -> None:
        """Double the buffers until a batch fits."""
        if more > self.capacity:
            raise UserError(f"a memory of {self.capacity} images is too small for {more} at once")
        needed = min(self.added + more, self.capacity)
        if needed <= len(self.images):
            return
        size = min(self.capacity, max(needed, 2 * len(self.images)))
        for name, like in (("images", self.images), ("answers", answers)):
            grown = like.new_empty(size, *like.shape[1:], device=answers.device)
            old = getattr(self, name)
            if len(old):
                grown[: len(old)] = old
            setattr(self, name, grown)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what has been kept, for the state dict."""
        kept = len(self)
        images, answers = self.images[:kept].clone(), self.answers[:kept].clone()
        return {"added": self.added, "images": images, "answers": answers, "outputs": self.outputs}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what had been kept."""
        device = self.images.device
        self.added, self.outputs = state["added"], state["outputs"]
        self.images, self.answers = state["images"].to(device), state["answers"].to(device)
        self.counts = torch.empty(0, dtype=torch.int64, device=device)
        if len(self):
            self._count(self.answers[: len(self)], 1)
