"""How exactly a run computes: precision, determinism, compilation."""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from dualstudent.errors import UserError, unknown

log = logging.getLogger(__name__)
WORTHWHILE = 200  # steps from which compiling, a minute for large networks, is won back
Precision = Literal["auto", "fp32", "tf32", "bf16"]
Compile = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Numerics:
    """Precision, determinism and compilation of a run. Raises UserError on an unknown precision."""

    precision: Precision = "auto"  # auto: tf32 on a GPU, fp32 on a CPU; bf16: students and generator only
    deterministic: bool = False  # on a GPU: bit for bit the same each time, and slower (a CPU always is)
    compile: Compile = "auto"  # networks by torch.compile; auto: in long phases on a GPU

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise unknown("precision", self.precision, get_args(Precision))
        if self.compile not in get_args(Compile):
            raise unknown("way to compile", str(self.compile), get_args(Compile))

    def on(self, device: str | torch.device) -> "Numerics":
        """Return what "auto" means on a device. Raises UserError for what it cannot do."""
        cuda = torch.device(device).type == "cuda"
        if self.precision == "tf32" and not cuda:
            raise UserError(f"--precision tf32 needs a GPU, {device} has none: fp32 or bf16")
        precision = self.precision if self.precision != "auto" else ("tf32" if cuda else "fp32")
        compile = self.compile if self.compile != "auto" or cuda else "off"
        return replace(self, precision=precision, compile=compile)

    def compiles(self, steps: int) -> bool:
        """Return whether a phase of so many steps is compiled: a single one never is."""
        return steps > {"off": steps, "on": 1, "auto": WORTHWHILE}[self.compile]

    def apply(self, device: str | torch.device) -> None:
        """Set torch's switches, which hold for the whole process; a CPU has none, but may be slow at bf16."""
        if torch.device(device).type != "cuda":
            if self.precision == "bf16":
                warn_of_bf16()
            return
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def casting(self, device: str | torch.device) -> AbstractContextManager[object]:
        """Return the context in which a step computes; weights, losses and answers stay float32."""
        return torch.autocast(
            torch.device(device).type,
            dtype=torch.bfloat16,
            enabled=self.precision == "bf16",
            cache_enabled=False,  # a step moves the weights: copies from before it must not be used after
        )


AUTO = Numerics()


@cache
def warn_of_bf16() -> None:
    """Say once where the CPU has no instructions for bfloat16, which take many times as long without."""
    told = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in every build of torch
    if told is not None and not told():
        log.warning("this processor has no instructions for bf16: --precision fp32 is quicker")


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in true float32 whatever the run's precision: differences of small steps need it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def full(x: Tensor) -> Tensor:
    """Return what a network computed in half precision as float32; anything else unchanged."""
    return x.float() if x.dtype.itemsize < 4 else x
