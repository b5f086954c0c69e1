"""What a target says of itself and what it does: a few images, charged to the audit."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from dualstudent import parallel
from dualstudent.data import Images
from dualstudent.evaluation.fidelity import ask
from dualstudent.ledger import Account
from dualstudent.oracle import Oracle
from dualstudent.spec import Target
from dualstudent.targets.module import ModuleTarget

PROBES = 8  # images of noise that a check shows


@dataclass(frozen=True)
class Findings:
    """What a check saw; `images` were charged to the audit."""

    spec: dict[str, Any]
    mode: str  # eval, or not known for what is no module
    answers: list[tuple[int, float]]  # top class and its probability, an answer each
    latency_ms: float  # median of single images
    accuracy: float | None
    images: int


def check_target(target: Target, account: Account, data: Images | None = None) -> Findings:
    """Ask a target about a few images of noise, and about test images if given.

    Raises TargetError on an answer that is none.
    """
    spec = target.spec
    low, high = spec.bounds
    oracle = Oracle(target, account)
    parallel.seed_step(0, 0, 0)
    probes = low + (high - low) * torch.rand(PROBES, *spec.shape)
    answers, times = [], []
    for probe in torch.split(probes, 1):
        start = time.perf_counter()
        answers.append(oracle(probe))
        times.append(time.perf_counter() - start)
    accuracy = None
    if data is not None:
        guess = ask(target, data, account).argmax(1)
        accuracy = (guess == data.labels).double().mean().item()
    mode = "unknown"
    if isinstance(target, ModuleTarget):
        mode = "eval, no gradients"
    return Findings(
        spec.to_json(),
        mode,
        [(int(a.argmax()), float(a.max())) for a in answers],
        1000 * sorted(times)[len(times) // 2],
        accuracy,
        account.asked,
    )
