"""Ranks of one run, and randomness as a function of (seed, step, rank).

Under torchrun each process works on its share of every batch. Numbers that steer the run (who asks
how many, whether to stop) travel over gloo, tensors over the device's own backend.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from dualstudent.errors import UserError


def rank() -> int:
    """Return this process's number in the run, 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes in the run, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def launched() -> tuple[int, int]:
    """Return this process's number and their count as torchrun has it, before they are joined."""
    if "MASTER_ADDR" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def settle(device: str) -> None:
    """Give each process that torchrun started a GPU of its own, before anything lies on one.

    Nothing for a CPU or a single process. Raises UserError where a machine has fewer GPUs.
    """
    kind = torch.device(device)
    if launched()[1] == 1 or kind.type != "cuda":
        return
    mine, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if kind.index is not None:
        raise UserError(f"--device {device}: several processes need a GPU each: say --device cuda")
    if mine >= gpus:
        here = os.environ.get("LOCAL_WORLD_SIZE", f"more than {mine}")
        raise UserError(
            f"{here} processes on a machine with {gpus} GPU{'s' * (gpus != 1)}:"
            f" give torchrun --nproc-per-node {gpus} at most, or the run --device cpu"
        )
    torch.cuda.set_device(mine)


@contextmanager
def ranks(device: str = "cpu") -> Iterator[None]:
    """Join the processes that torchrun started, for the length of a command; nothing without it."""
    if launched()[1] == 1:
        yield
        return
    settle(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:  # ValueError: no port, for one
        where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
        reason = str(error).splitlines()[0]
        raise UserError(f"rank {launched()[0]} cannot join the others by {where}: {reason}") from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard(images: int) -> int:
    """Return how many of a batch fall to this rank; the shares differ by one at most."""
    return images // world() + (rank() < images % world())


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, in place; nothing to do for one rank.

    Each rank's mean counts the same, also where shares differ by one image: with 1,001 images on two
    ranks an image of the smaller share weighs 0.2 % more.
    """
    average([p.grad for p in parameters if p.grad is not None])


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place. Raises UserError if a rank is gone."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _together():
        dist.all_reduce(flat)
    flat /= world()
    for tensor, mean in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def total(number: int) -> int:
    """Return the sum of a number over the ranks."""
    if world() == 1:
        return number
    value = torch.tensor(number)
    with _together():
        dist.all_reduce(value)
    return int(value)


def whole(number: float) -> int:
    """Return a number rounded up or down by chance, its mean in the long run; the same on all ranks."""
    luck = total(int(torch.randint(1000, ()))) % 1000 / 1000
    return int(number + luck)


def meet() -> None:
    """Wait until all ranks are here."""
    if world() > 1:
        total(0)


def gather(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, those of rank 0 first; ranks may have different numbers of them."""
    if world() == 1:
        return rows
    count = torch.tensor(len(rows))
    counts = [torch.zeros_like(count) for _ in range(world())]
    with _together():
        dist.all_gather(counts, count)
        most = max(int(c) for c in counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
    return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every generator of torch for one step of one rank: no random state has to be saved."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo and nccl raise nothing more precise
        raise UserError(
            f"rank {launched()[0]} lost the other processes of this run: see what they said;"
            " 'dualstudent resume' goes on from the last snapshot"
        ) from error
