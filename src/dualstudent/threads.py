"""Threads of a run on a CPU: one for what is small, one each for students that learn side by side."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")
_most = 1  # of light students that learn at once


def cores() -> int:
    """Return how many cores this process may use: of those it is bound to, what a container is granted."""
    from joblib import cpu_count  # slow to import

    return int(cpu_count())


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: small operations, an optimiser's, take longer to wake others than to do."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(most: int | None = None) -> None:
    """Let up to so many light students, default: one a core, learn at once on a CPU, in a thread each.

    For the whole process, and without it as many as an operation may have threads. What is learnt is the
    same to the bit. Larger students share the threads of an operation whatever is said here.
    """
    global _most
    _most = cores() if most is None else most


def at_once(jobs: Sequence[Callable[[], T]], light: bool = True) -> list[T]:
    """Return what jobs, which share nothing, return, in their order; at once where allowed.

    `light` ones each in one thread; others share those that an operation may have, as cores are shared
    better among networks than within one.
    """
    threads = torch.get_num_threads()
    most = min(len(jobs), max(_most, threads) if light else threads)
    if most == 1 and not light:
        return [job() for job in jobs]
    each = 1 if light else threads // most
    with one_thread():
        if most <= 1:
            return [job() for job in jobs]
        learning, half = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        kind, cached = torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()

        def as_here(job: Callable[[], T]) -> T:  # a thread does not take these from the one that made it
            torch.set_num_threads(each)
            cast = torch.autocast("cpu", dtype=kind, enabled=half, cache_enabled=cached)
            with cast, torch.set_grad_enabled(learning):
                return job()

        return list(_pool(most).map(as_here, jobs))


@lru_cache(1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "dualstudent student")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
