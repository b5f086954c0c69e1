"""The only door to a target: it charges first, checks the answer, and keeps no gradient."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dualstudent import parallel
from dualstudent.errors import Diverged, Stopped, TargetError, UserError
from dualstudent.ledger import Account, Shown
from dualstudent.spec import SLACK, Access, Spec, Target

Exchange = tuple[Tensor, Tensor]  # images as the target saw them, and its answers
Part = tuple[Tensor, Tensor]  # positions in the batch, and their answers
SUM_TOLERANCE = 1e-3  # how far the sum of a row of probabilities may be from one


@runtime_checkable
class Question(Protocol):
    """Images to be asked where every answer is paid for."""

    @property
    def due(self) -> int:
        """Images that are not charged yet."""

    def parts(self) -> Iterator[Part]:
        """Start asking what is missing; return all parts, those that are paid already first."""


@runtime_checkable
class Paid(Protocol):
    """Where the answers to paid questions are kept."""

    def question(self, x: Tensor, first: int) -> Question:
        """Return the question of images at the positions of the history from `first`. Raises UserError."""


class Oracle:
    """What a method may ask. Charges the account before it asks; no attribute leads to the target.

    Images are detached and rounded to `spec.levels`, answers are computed without a graph and
    verified; `asked`, where given, gets each exchange. With `paid`, the bare target is asked there,
    and what it has answered before is neither charged nor asked again. Raises Overdraft and Diverged
    before asking, TargetError on an answer that is no answer.
    """

    __slots__ = ("_begin", "spec")

    def __init__(
        self,
        target: Target,
        account: Account,
        shown: Shown | None = None,
        asked: list[Exchange] | None = None,
        paid: Paid | None = None,
    ) -> None:
        spec = target.spec

        def charged(x: Tensor) -> Callable[[], Iterator[Part]]:
            """Charge a batch, durably, and return what asks it."""
            if paid is None:
                account.charge(parallel.total(len(x)))
                return partial(asking, target, x)
            question = paid.question(x, account.spent)
            account.charge(len(x), held=len(x) - question.due)
            return question.parts

        def begin(batches: Sequence[Tensor]) -> Iterator[Tensor]:
            x = batches[0] if len(batches) == 1 else torch.cat(list(batches))
            x = spec.quantise(x.detach())
            _check_images(x, spec)
            ask = charged(x)
            parallel.meet()  # the charge is on disk before any rank asks
            with torch.inference_mode(), torch.autocast(x.device.type, enabled=False):
                parts = ask()
            return collect(parts, x, [len(batch) for batch in batches])

        def collect(parts: Iterator[Part], x: Tensor, sizes: list[int]) -> Iterator[Tensor]:
            begun = len(x)
            for answer, end in _in_order(parts, x, spec, sizes):
                if end == begun:  # all are there, before the last batch is handed out
                    if shown is not None:
                        shown.add(x, answer)
                    if asked is not None:
                        asked.append((x, answer))
                yield answer[end - sizes[0] : end]
                sizes = sizes[1:]

        self._begin = begin
        self.spec = spec

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Show a batch and return the answers, rows on the simplex."""
        [answer] = self._begin([x])
        return answer

    def begin(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Charge and ask batches in one question now; return the answers of each, in order.

        A service answers while the caller works: each batch is waited for when it is taken, and all
        must be. Other targets have answered when this returns.
        """
        return self._begin(batches)


def asking(target: Target, x: Tensor) -> Iterator[Part]:
    """Start asking and return the parts as they are answered: a service's requests, or one whole."""
    requests = getattr(target, "requests", None)
    if requests is not None:
        return requests(x)  # type: ignore[no-any-return]
    return iter([(torch.arange(len(x)), answered(target, x))])


def together(parts: Iterator[Part], x: Tensor, spec: Spec) -> Tensor:
    """Return the answers of all parts as one tensor (b, k). Raises TargetError where they are none."""
    [(rows, _)] = _in_order(parts, x, spec, [len(x)])
    return rows


def _in_order(
    parts: Iterator[Part], x: Tensor, spec: Spec, sizes: Sequence[int]
) -> Iterator[tuple[Tensor, int]]:
    """Yield (answers, end) for each batch as soon as all rows before its end are there.

    Where the number of classes is unknown that is once all are: the width depends on every answer.
    """
    rows: Tensor | None = None
    there = torch.zeros(len(x), dtype=torch.bool)
    ends = list(accumulate(sizes))
    for places, answer in parts:
        answer = checked(answer, len(places), spec)
        if there[places].any():
            raise TargetError("the target answered an image twice")
        if rows is None:
            rows = torch.zeros(len(x), answer.shape[1], dtype=x.dtype, device=x.device)
        if answer.shape[1] > rows.shape[1]:
            rows = torch.nn.functional.pad(rows, (0, answer.shape[1] - rows.shape[1]))
        rows[places.to(x.device), : answer.shape[1]] = answer.to(rows)
        there[places] = True
        while ends and there[: ends[0] if spec.classes is not None else len(x)].all():
            yield rows, ends.pop(0)
    if ends or rows is None:
        raise TargetError(f"the target answered {int(there.sum())} of {len(x)} images")


def _check_images(x: Tensor, spec: Spec) -> None:
    if tuple(x.shape[1:]) != spec.shape:
        raise TargetError(f"images of shape {tuple(x.shape[1:])} for a target that takes {spec.shape}")
    low, high = spec.bounds
    slack = SLACK * (high - low)
    smallest, largest = torch.aminmax(x)
    if not ((smallest >= low - slack) & (largest <= high + slack)):  # NaN fails too; one wait for a GPU
        if not torch.isfinite(smallest + largest):
            raise Diverged("the images to be asked are not finite: students or generator diverged")
        raise TargetError(
            f"images in [{smallest:.3g}, {largest:.3g}] for a target that takes [{low:g}, {high:g}]"
        )


def answered(target: Callable[[Any], Any], x: Any) -> Any:
    """Return what a target, or a model in it, answers to images; raises TargetError for what it raises."""
    try:
        return target(x)
    except (UserError, Stopped):
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TargetError(f"the target failed on images {tuple(x.shape)}: {reason}") from error


def checked(answer: object, batch: int, spec: Spec) -> Tensor:
    """Return an answer of shape (batch, k) if its rows are on the simplex. Raises TargetError."""
    if not isinstance(answer, Tensor):
        raise TargetError(f"the target returned {type(answer).__name__}, not a tensor of probabilities")
    if answer.ndim != 2:
        raise TargetError(f"the target returned shape {tuple(answer.shape)}, not (images, classes)")
    if len(answer) != batch:
        raise TargetError(f"the target returned {len(answer)} rows for {batch} images")
    if spec.classes is not None and answer.shape[1] != spec.classes:
        raise TargetError(
            f"the target returned {answer.shape[1]} classes, its spec says {spec.classes}:"
            f" mend the spec (--classes {answer.shape[1]})"
        )
    answer = answer.to(torch.promote_types(answer.dtype, torch.float32))
    total = answer.sum(1)
    stray = (total - 1).abs() if spec.access != Access.TOPK else total - 1
    fine = (answer >= 0).all() & (stray <= SUM_TOLERANCE).all()  # NaN fails both
    if spec.access == Access.LABEL:
        fine &= ((answer == 0) | (answer == 1)).all()
    if not fine:  # the one wait for a GPU
        _explain(answer, total, spec)
    return answer


def _explain(answer: Tensor, total: Tensor, spec: Spec) -> None:
    """Raise TargetError saying what is wrong with an answer."""
    if not torch.isfinite(answer).all():
        raise TargetError("the target returned NaN or infinite values")
    stray = (total - 1).abs().max().item() if spec.access != Access.TOPK else (total - 1).max().item()
    if answer.min().item() < 0 or stray > SUM_TOLERANCE:
        raise TargetError(
            f"the target returned values in [{answer.min():.3g}, {answer.max():.3g}], rows summing to"
            f" {total.min():.4g} … {total.max():.4g}: these are no probabilities;"
            " if they are logits, say so with --output logits"
        )
    raise TargetError("the target's access is LABEL, but its rows are not one-hot")
