"""What transfers as an attack: adversarial images made on a proxy, shown to the target. The owner's view.

The attacks are those of the Adversarial Robustness Toolbox (extra `attacks`), in ℓ∞; steps, iterations,
restarts and target classes, which papers often leave out, are part of every figure.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dualstudent.data import Images
from dualstudent.errors import UserError, unknown
from dualstudent.evaluation.fidelity import ask_all, evaluating, wilson
from dualstudent.ledger import Account
from dualstudent.oracle import Paid
from dualstudent.spec import Spec, Target

Kind = Literal["fgsm", "bim", "pgd"]
Kept = Callable[[Tensor], Paid | None]  # of the target's inputs to where answers to them are kept
BATCH = 250  # images attacked at once


@dataclass(frozen=True)
class Attack:
    """One attack of an image x in pixels: |x' − x| ≤ eps everywhere. Raises UserError.

    `step` and `iterations` of bim and pgd; `restarts` random starts of pgd. Targeted: the class after
    the true one, the last followed by the first.
    """

    kind: Kind = "pgd"
    eps: float = 3 / 255  # in pixels of [0, 1]
    targeted: bool = False
    step: float = 1 / 255  # in pixels of [0, 1]
    iterations: int = 10
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown("attack", self.kind, get_args(Kind))
        if not (0 < self.eps <= 1 and 0 < self.step <= 1):
            raise UserError(f"eps {self.eps:g}, step {self.step:g}: above 0 and at most 1 (3/255, say)")
        if self.iterations < 1 or self.restarts < 1:
            raise UserError("an attack has one iteration and one start at least")

    def against(self, proxy: nn.Module, spec: Spec) -> Any:
        """Return ART's attack on a proxy that gives logits (b, k). Raises UserError without ART."""
        try:
            from art.attacks import evasion
            from art.estimators.classification import PyTorchClassifier
        except (ImportError, RuntimeError) as error:
            raise UserError("transfer attacks need: pip install 'dualstudent[attacks]'") from error
        estimator = PyTorchClassifier(
            _Pixels(proxy, spec),
            nn.CrossEntropyLoss(),
            spec.shape,
            spec.classes or 0,
            clip_values=(0.0, 1.0),
            device_type="gpu" if any(p.is_cuda for p in proxy.parameters()) else "cpu",
        )
        common = {"eps": self.eps, "targeted": self.targeted, "batch_size": BATCH}
        if self.kind == "fgsm":
            return evasion.FastGradientMethod(estimator, **common)
        more = {"eps_step": min(self.step, self.eps), "max_iter": self.iterations, "verbose": False}
        if self.kind == "bim":
            return evasion.BasicIterativeMethod(estimator, **common, **more)
        return evasion.ProjectedGradientDescent(estimator, num_random_init=self.restarts, **common, **more)


class _Pixels(nn.Module):
    """A proxy behind the target's encoding: attacks work on pixels in [0, 1], whatever it takes."""

    def __init__(self, proxy: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.proxy, self.spec = proxy, spec

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.proxy(self.spec.encode(pixels))  # type: ignore[no-any-return]


def transfer(
    attacks: Sequence[Attack],
    proxies: Mapping[str, nn.Module],
    target: Target,
    data: Images,
    account: Account,
    progress: Callable[[int, int], None] = lambda done, total: None,
    paid: Kept = lambda x: None,
) -> list[dict[str, Any]]:
    """Attack test images on each proxy, show them to the target, and return a row for each pair.

    `success` is the share, over the images that the target puts into the right class, that it then
    puts into another one (targeted: into the chosen one); `success_all` the same over all images. The
    proxies give logits (b, k) for the target's inputs. Sizes are in pixels. Charged: the images once,
    then once a row, but for those whose answers `paid` keeps.
    """
    spec = target.spec
    x = data.pixels()
    right = _named(target, x, account, paid) == data.labels
    rows = []
    for name, proxy in proxies.items():
        for attack in attacks:
            goal = chosen(data.labels, spec.classes or len(data.classes), attack)
            moved = attacked(attack, proxy, spec, x, goal)
            hit = succeeded(_named(target, moved, account, paid), data.labels, goal, attack)
            rows.append(
                {"proxy": name, **asdict(attack), "rule": "next class" if attack.targeted else None}
                | {"images": len(x), "right": int(right.sum())}
                | {"success": _share(hit & right, right), "success_all": _share(hit, torch.ones_like(right))}
                | {"success_ci": wilson(int((hit & right).sum()), int(right.sum()))}
            )
            progress(len(rows), len(proxies) * len(attacks))
    return rows


def attacked(
    attack: Attack, proxy: nn.Module, spec: Spec, x: Float[Tensor, "n c h w"], goal: Int64[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Return adversarial pixels of pixels; `goal` holds true classes, or those a targeted attack wants."""
    with evaluating(proxy), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # ART 1.20 hands tensors to numpy 2
        np.random.seed(0)  # the random starts of ART
        moved = attack.against(proxy, spec).generate(x=x.numpy(), y=goal.numpy())
    return torch.from_numpy(moved.astype(np.float32))


def chosen(labels: Int64[Tensor, "n"], classes: int, attack: Attack) -> Int64[Tensor, "n"]:
    """Return what an attack is told: the true classes, or the ones it is to reach."""
    return (labels + 1) % classes if attack.targeted else labels


def succeeded(
    named: Int64[Tensor, "n"], labels: Int64[Tensor, "n"], goal: Int64[Tensor, "n"], attack: Attack
) -> Bool[Tensor, "n"]:
    """Return where the target named another class than the true one, or the chosen one."""
    return named == goal if attack.targeted else named != labels


def better_student(
    students: nn.ModuleList,
    target: Target,
    pixels: Float[Tensor, "n c h w"],
    account: Account,
    paid: Kept = lambda x: None,
) -> int:
    """Return which student agrees most with the target on images held back from it: no test image."""
    named, x = _named(target, pixels, account, paid), target.spec.quantise(target.spec.encode(pixels))
    x = x.to(next(students.parameters()).device)
    with torch.inference_mode():
        agreements = []
        for student in students:
            with evaluating(student):
                agreements.append((student(x).argmax(1).cpu() == named).double().mean().item())
    return int(np.argmax(agreements))


def _named(target: Target, pixels: Tensor, account: Account, paid: Kept) -> Int64[Tensor, "n"]:
    """Return the classes that the target names, charged."""
    x = target.spec.quantise(target.spec.encode(pixels))
    return ask_all(target, torch.split(x, BATCH), account, paid(x)).argmax(1).cpu()


def _share(hit: Bool[Tensor, "n"], among: Bool[Tensor, "n"]) -> float | None:
    return hit.double().sum().item() / total if (total := among.sum().item()) else None
