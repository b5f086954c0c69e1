"""Muon: hidden weights step as far in every direction of their matrix, all else by AdamW."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent.threads import at_once

QUINTIC, TURNS = (3.4445, -4.7750, 2.0315), 3  # of the iteration after Newton and Schulz; published: 5
MOMENTUM = 0.95  # Nesterov's
LEAST = 1e-18  # norm of a gradient below which steps grow shorter: squares of less are lost in float32
LONG = 7000  # batches above which more of them are learnt at lower rates
LENGTH = 0.2  # root mean square of a step in units of the rate, that of AdamW (Liu et al. 2025, eq. 4)


def orthogonal(g: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """Return a matrix with g's singular vectors and singular values near 1, 0.7 to 1.2 (Jordan et al. 2024).

    Directions whose singular value is less than a fiftieth of g's norm stay shorter.
    """
    a, b, c = QUINTIC
    x: Tensor = g if g.shape[0] <= g.shape[1] else g.t()
    x = x / x.norm().clamp_min(LEAST)
    for _ in range(TURNS):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if g.shape[0] <= g.shape[1] else x.t()


def hidden(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a classifier that are matrices, but those registered last, its head's.

    Kernels of convolutions are matrices of a row for each channel out.
    """
    return [p for p in network.parameters() if p.ndim > 1 and min(p.flatten(1).shape) > 1][:-1]


def lower(batches: float) -> float:
    """Return the factor on the rates of who learns so many batches: one over the root of how many LONGs."""
    return math.sqrt(min(1.0, LONG / max(1.0, batches)))


def for_two(batches: float) -> float:
    """Return the factor on the batches of one network in the place of two that would learn so many each.

    2; of n above LONG 2√(LONG / n), but never less than 1.
    """
    return max(1.0, 2 * lower(batches))


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the hidden weights of networks, AdamW for all else, at one rate.

    `rate` and `weight_decay` mean the same for both (Liu et al. 2025): Muon's steps are as long as AdamW's.
    """

    def __init__(self, networks: Iterable[nn.Module], rate: float, weight_decay: float) -> None:
        networks = list(networks)
        self._each = [hidden(network) for network in networks]
        matrices = [p for weights in self._each for p in weights]
        known = {id(p) for p in matrices}
        others = [p for network in networks for p in network.parameters() if id(p) not in known]
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        super().__init__([g for g in groups if g["params"]], rate, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step down the gradients, those of hidden weights used up by it; networks at once where allowed."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        groups = [group for group in self.param_groups if group["muon"]]
        for p in (p for group in groups for p in group["params"]):
            if p.grad is not None and not self.state[p]:  # here, so that their order is no matter of luck
                self.state[p]["momentum"] = torch.zeros_like(p)
                self.state[p]["step"] = torch.zeros((), device=p.device)  # AdamW's loading wants one
        jobs = [partial(self._turns, weights, group) for group in groups for weights in self._each]
        # products in float32: on a CPU, small ones take longer to cast than to do
        with torch.autocast("cpu", enabled=False):
            if jobs and groups[0]["params"][0].device.type == "cpu":
                at_once(jobs)
            else:
                for job in jobs:
                    job()
        super().step()
        return loss

    def _turns(self, weights: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """Step down the gradients of a network's hidden weights."""
        for p in weights:
            if p.grad is not None:
                self._turn(p, p.grad, group["lr"], group["weight_decay"])
                p.grad = None  # AdamW's own step leaves it alone

    def _turn(self, p: Tensor, grad: Tensor, rate: float | Tensor, weight_decay: float) -> None:
        momentum = self.state[p]["momentum"].lerp_(grad, 1 - MOMENTUM)
        turn = orthogonal(grad.lerp(momentum, MOMENTUM).flatten(1))
        length = LENGTH * max(turn.shape) ** 0.5
        p.mul_(1 - rate * weight_decay).sub_(rate * length * turn.reshape(p.shape))
