"""Students learn at once: light ones in a thread each, the same to the bit; larger ones share the threads."""

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, parallel, threads
from dualstudent.ledger import Account
from dualstudent.methods import DualStudent, Frugal, Method
from dualstudent.methods.game import Pupils, learn, logit_distance, sgd
from dualstudent.networks import Students
from dualstudent.numerics import Numerics
from test_contract import same

SMALL = [
    DualStudent(batch=8, width=4),
    Frugal(batch=8, learnt=8, compute_least=60),
    Frugal(students=3, batch=8, learnt=8, compute_least=60),
]


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("access", [ds.Access.PROBS, ds.Access.LABEL])
def test_at_once_as_in_turns(
    method: Method[Any], precision: Any, access: ds.Access, linear: Callable[..., Linear]
) -> None:
    made = []
    for most in (1, 2, 3):
        threads.side_by_side(most)
        target = linear(access=access)
        made.append(
            engine.run(
                method, target, Account("attack", 80), budgets=[80], numerics=Numerics(precision), seed=3
            )
        )
    assert all(same(made[0], other) for other in made[1:])


class Meeting(nn.Module):
    """A student that waits until another is at work too, as long as `seconds`."""

    def __init__(self, meet: threading.Barrier) -> None:
        super().__init__()
        self.meet, self.head = meet, nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.meet.wait()
        assert torch.get_num_threads() == 1
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def pupils(seconds: float, count: int = 2) -> Pupils:
    """Return students that learn only where so many are at work at once."""
    students = Students("digits-cnn", (1, 8, 8), 4, count)
    meet = threading.Barrier(count, timeout=seconds)
    students.members = nn.ModuleList(Meeting(meet) for _ in range(count))
    for member in students.members:
        type(member).__module__ = "dualstudent.networks"  # ours
    return Pupils(students, sgd(students, 0.1, 0.0))


def taught(players: Pupils) -> Tensor:
    """Return the logits of a batch that was learnt."""
    return learn(players, logit_distance, torch.rand(5, 1, 8, 8), torch.rand(5, 4).softmax(1))[1]


def dropping(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A student of somebody's that draws."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(), nn.Linear(9, classes))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_child_process_has_threads_of_its_own() -> None:
    """It has none of its parent's, and would wait for them for ever.

    They only meet: of products no library promises anything after a fork.
    """

    def meet() -> None:
        threads.at_once([threading.Barrier(2, timeout=30).wait] * 2)

    threads.side_by_side(2)
    meet()
    child = multiprocessing.get_context("fork").Process(target=meet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
        child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0


@pytest.mark.parametrize("most", [1, 2])
def test_two_are_at_work_at_once(most: int) -> None:
    threads.side_by_side(most)
    if most == 2:
        assert taught(pupils(30)).shape == (2, 5, 4)
    else:
        with pytest.raises(threading.BrokenBarrierError):
            taught(pupils(0.1))


def test_as_many_as_an_operation_may_have_threads() -> None:
    """From Python, where none has said how many."""
    torch.set_num_threads(2)
    assert taught(pupils(30)).shape == (2, 5, 4)
    assert torch.get_num_threads() == 2


def test_what_stops_one_stops_the_step() -> None:
    threads.side_by_side(2)
    players = pupils(30)
    players.students.members[1] = nn.Sequential(nn.Flatten(), nn.Linear(3, 4))
    players.students.members[0] = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(RuntimeError, match="shapes"):
        taught(players)
    assert torch.get_num_threads() == 1


def test_who_learns_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of others, which may draw; heavy ones, which have all threads; compiled ones; ranks."""
    light = Students("lenet5", (1, 28, 28), 10, 2)
    assert light.apart == list(light.members)
    assert not Students("lenet5", (1, 28, 28), 10, 1).apart, "alone it may have all threads"
    assert not Students("resnet18", (3, 32, 32), 10, 2).apart, "it uses all cores as well"
    assert not Students(f"torch:{__name__}:dropping", (1, 8, 8), 4, 2).apart, "though all of it is torch's"
    compiled = Students("lenet5", (1, 28, 28), 10, 2)
    compiled.compile(backend="eager")
    assert not compiled.apart
    others = pupils(0.1)
    for member in others.students.members:
        type(member).__module__ = "somebody"
    assert not others.students.apart
    threads.side_by_side(2)
    ranked = pupils(0.1)
    monkeypatch.setattr(parallel, "world", lambda: 2)
    with pytest.raises(threading.BrokenBarrierError):
        taught(ranked)


@pytest.mark.parametrize(
    ("threads_", "jobs", "each"), [(2, 2, 1), (4, 2, 2), (5, 2, 2), (2, 3, 1), (1, 2, 1), (4, 1, 4)]
)
def test_larger_ones_share_the_threads_of_an_operation(threads_: int, jobs: int, each: int) -> None:
    """As many at once as there are threads; with one, in turns, whatever light ones may."""
    threads.side_by_side(2)
    torch.set_num_threads(threads_)
    meet = threading.Barrier(min(threads_, jobs), timeout=30)
    at_work: list[int] = []

    def job() -> int:
        if len(at_work) < meet.parties:
            at_work.append(1)
            meet.wait()
        return torch.get_num_threads()

    assert threads.at_once([job] * jobs, light=False) == [each] * jobs
    assert torch.get_num_threads() == threads_


def test_larger_students_learn_at_once() -> None:
    """A ResNet-8 on colours is not light, and shares the cores with another."""
    students = Students("resnet8", (3, 32, 32), 4, 2)
    assert students.apart == list(students.members)
    assert not students.light
    seen: list[int] = []
    for member in students.members:
        member.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(4)
    learn(
        Pupils(students, sgd(students, 0.1, 0.0)),
        logit_distance,
        torch.rand(4, 3, 32, 32),
        torch.rand(4, 4).softmax(1),
    )
    assert seen == [2, 2]
