"""Targets in this process: torch modules and any callable from a numpy batch."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from dualstudent.errors import TargetError, UserError
from dualstudent.oracle import answered
from dualstudent.spec import Access, Spec

log = logging.getLogger(__name__)
Output = Literal["probabilities", "logits", "labels"]
CHUNK = 256  # images a CPU is given at once: more would not be quicker, only take more memory
ROOM = 1 << 27  # values of one-hot rows whose width a label alone decides
CHANGED_BY_MODE = (_NormBase, _DropoutNd)
OUTPUTS: tuple[str, ...] = get_args(Output)


class ModuleTarget:
    """A torch module as a target: in eval mode, on one device, without gradients.

    `output` says what it returns: probabilities (b, k), logits (b, k), or labels (b,). `normalise`,
    a (mean, std) pair of one value a channel, is applied to its inputs. Raises TargetError where
    the module fails or has been put back into training mode, in which asking would change it.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: Spec,
        *,
        output: Output = "probabilities",
        normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if module.training and any(isinstance(part, CHANGED_BY_MODE) for part in module.modules()):
            log.info("the target was in training mode: set to eval mode")
        self.module = module.to(device).eval().requires_grad_(False)
        self.spec = replace(spec, access=Access.LABEL) if output == "labels" else spec
        self.output, self.device = output, torch.device(device)
        self._affine = None
        if normalise is not None:
            self._affine = [torch.tensor(v, device=device).view(-1, 1, 1) for v in normalise]

    def __call__(self, x: Float[Tensor, "b c h w"], /) -> Float[Tensor, "rows k"]:
        """Return rows on the simplex, as many as the model gives: the oracle counts and verifies them."""
        if any(module.training for module in self.module.modules()):
            raise TargetError("the target is in training mode, asking would change it: call .eval() on it")
        inputs = x.to(self.device)
        if self._affine is not None:
            inputs = (inputs - self._affine[0]) / self._affine[1]
        return simplex(answered(self._forward, inputs), self.output, self.spec.classes).to(x.device)

    def white_box(self) -> nn.Module | None:
        """Return the network itself, inputs to logits with gradients; None where it gives no logits."""
        return _WhiteBox(self.module, self._affine).eval() if self.output == "logits" else None

    def _forward(self, inputs: Tensor) -> Any:
        if self.device.type != "cpu" or len(inputs) <= CHUNK:
            return self.module(inputs)
        answers = [self.module(part) for part in torch.split(inputs, CHUNK)]
        return torch.cat(answers) if all(isinstance(answer, Tensor) for answer in answers) else answers[0]


class _WhiteBox(nn.Module):
    """A network with its normalisation: for its owner alone, never for a method."""

    def __init__(self, module: nn.Module, affine: list[Tensor] | None) -> None:
        super().__init__()
        self.module, self.affine = module, affine

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        if self.affine is not None:
            x = (x - self.affine[0]) / self.affine[1]
        return self.module(x)  # type: ignore[no-any-return]


class CallableTarget:
    """Any callable from a float32 numpy batch (b, c, h, w) to probabilities (b, k) or labels (b,)."""

    def __init__(
        self, function: Callable[[Any], Any], spec: Spec, *, output: Output = "probabilities"
    ) -> None:
        self.function, self.output = function, output
        self.spec = replace(spec, access=Access.LABEL) if output == "labels" else spec

    def __call__(self, x: Float[Tensor, "b c h w"], /) -> Float[Tensor, "rows k"]:
        """Return rows on the simplex, as many as the model gives: the oracle counts and verifies them."""
        answer = answered(lambda images: np.asarray(self.function(images)), x.cpu().numpy())
        if answer.dtype.kind not in "fiub":
            raise TargetError(f"the target returned values of type {answer.dtype}: give numbers")
        tensor = torch.from_numpy(np.ascontiguousarray(answer))
        return simplex(tensor, self.output, self.spec.classes).to(x.device)


def simplex(raw: object, output: Output, classes: int | None) -> Float[Tensor, "b k"]:
    """Turn what a model returns into rows on the simplex. Raises TargetError.

    Labels of an unknown number of classes become one-hot rows as wide as the largest needs.
    """
    if not isinstance(raw, Tensor):
        raise TargetError(f"the target returned {type(raw).__name__}, not a tensor or an array")
    if output == "labels":
        if raw.ndim == 2:
            raw = raw.argmax(1)
        if raw.ndim != 1 or (raw != raw.long()).any() or (raw < 0).any():
            raise TargetError("the target returned no labels: whole numbers from 0, one an image")
        width = classes if classes is not None else int(raw.max()) + 1
        if (raw >= width).any():
            raise TargetError(f"the target returned label {int(raw.max())}, its spec has {width} classes")
        if classes is None and len(raw) * width > ROOM:
            raise TargetError(
                f"the target returned label {int(raw.max())}: no class is that far; say --classes N"
            )
        return nn.functional.one_hot(raw.long(), width).float()
    if raw.ndim == 1 and not raw.is_floating_point():
        raise TargetError("the target returned labels: say so with --output labels")
    if raw.ndim == 2 and output == "logits":
        if not torch.isfinite(raw).all():
            raise TargetError("the target returned NaN or infinite logits")
        return raw.float().softmax(1)
    return raw.float()


def check_output(output: str) -> Output:
    """Return a known kind of output. Raises UserError."""
    if output not in OUTPUTS:
        raise UserError(f"--output {output}: one of {', '.join(OUTPUTS)}")
    return output  # type: ignore[return-value]
