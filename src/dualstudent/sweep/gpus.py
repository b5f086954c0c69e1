"""The GPUs of this machine, dealt to the jobs of a sweep."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named[:count] or [str(number) for number in range(count)]


def freest(gpus: Sequence[str], taken: Iterable[str | None]) -> str | None:
    """Return the GPU that the fewest running jobs have, the first of several; None where there is none."""
    jobs = Counter(taken)
    return min(gpus, key=lambda gpu: jobs[gpu], default=None)


def take(gpu: str | None) -> None:
    """Let this process see one GPU only; before torch asks CUDA anything. None: as it is."""
    if gpu is not None:
        os.environ[VISIBLE] = gpu
