"""Ranks of one run, and randomness as a function of (seed, step, rank)."""

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's number in the run, 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes in the run, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shard(images: int) -> int:
    """Return how many of a batch fall to this rank; the shares differ by one at most."""
    return images // world() + (rank() < images % world())


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, in place; nothing to do for one rank."""
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world()
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every generator of torch for one step of one rank: no random state has to be saved."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
