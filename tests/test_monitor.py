"""Collapse: found, told, and acted on."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent import engine
from dualstudent.ledger import Account
from dualstudent.methods import Frugal
from dualstudent.methods.game import Learners
from dualstudent.methods.monitor import PATIENCE, evenness, renew
from dualstudent.oracle import Oracle


def test_a_student_that_sees_nothing_starts_afresh(
    linear: Callable[..., Linear], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Dead from the start, as a rate too high would leave it: renewed, warned of, and told in the result."""
    method = Frugal(student="lenet5", batch=8, compute_least=16, after=0.5)
    target = linear(shape=(1, 12, 12), classes=10)
    dead = method.init(target.spec)
    for weight in dead.students.members[0].parameters():
        weight.data.zero_()
    living = [weight.clone() for weight in dead.students.members[1].parameters()]
    dead.memory.add(torch.rand(8, *target.spec.shape), torch.eye(10)[torch.arange(8)])
    logits = dead.students(torch.rand(4, *target.spec.shape)).detach()
    assert renew(dead, logits, torch.eye(10)[:1].expand(4, -1)) == 0, "all answers alike: it may be right"
    assert renew(dead, logits, torch.eye(10)[:4]) == 1
    assert all(weight.std() > 0 for weight in dead.students.members[0].parameters() if weight.ndim > 1)
    assert all(map(torch.equal, dead.students.members[1].parameters(), living))

    class Dead(Frugal):
        def init(self, spec: ds.Spec) -> Learners:
            state = super().init(spec)
            for weight in state.students.members[0].parameters():
                weight.data.zero_()
            return state

    run = ds.extract(Dead(**vars(method)), target, queries=64, out=tmp_path / "run", device="cpu")
    assert "a student saw nothing, what another saw or one class in all: it got fresh weights" in caplog.text
    [flag] = [flag for flag in run.result["flags"] if flag["name"] == "collapse"]
    assert "1 times a student saw nothing" in flag["text"]


@pytest.mark.parametrize("places", [(0, 1, 2), (0, 2, 1)])
def test_a_student_that_sees_what_another_sees_starts_afresh(
    places: tuple[int, int, int], linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a network of others comes with the same weights each time; who differs is left alone."""
    method = Frugal(student="digits-cnn", compute_least=64, students=3)
    state, target = method.init(linear(classes=10).spec), linear(classes=10)
    first, twin, other = (state.students.members[i] for i in places)
    twin.load_state_dict(first.state_dict())
    monkeypatch.setattr("dualstudent.networks.ensemble.classifier", lambda *_: copy.deepcopy(first))
    kept = copy.deepcopy(other.state_dict())
    state.memory.add(torch.rand(8, *target.spec.shape), torch.eye(10)[torch.arange(8)])
    oracle = Oracle(target, Account("attack"))
    assert method.learn(state, oracle, 9.0, 1, calm=True)["renewed"] == 0, "it would get no statistics"
    assert method.learn(state, oracle, 9.0, 1)["renewed"] == 1
    logits = state.students(torch.rand(8, *target.spec.shape)).detach()
    assert renew(state, logits, torch.eye(10)[:8]) == 0
    assert (logits[places[1]] - logits[places[0]]).abs().max() > 1e-3
    assert sum(torch.equal(kept[k], v) for k, v in other.state_dict().items()) < len(kept), "it learns"


def test_a_student_that_keeps_seeing_one_class_starts_afresh(linear: Callable[..., Linear]) -> None:
    """Its logits depend on the image, its class does not: not at once, and not where it is right."""
    torch.manual_seed(0)  # of others, one in ten sees one class everywhere after a step
    target = linear(classes=10)
    state = Frugal(student="digits-cnn").init(target.spec)
    x, answer = torch.rand(20, *target.spec.shape), torch.eye(10)[torch.arange(20) % 10]
    state.memory.add(x, answer)
    *_, bias = state.students.members[1].parameters()
    bias.data[3] = 1e3
    assert (state.students(x)[1].argmax(1) == 3).all()

    def renewed(answer: Tensor) -> Tensor:
        return renew(state, state.students(x).detach(), answer)

    loss = state.students(x).sum()
    loss.backward()
    state.student_descent.step()
    assert renewed(answer) == 0, "it may learn yet"
    for moments in state.student_descent.state.values():
        moments["step"].fill_(PATIENCE)
    assert renewed(torch.eye(10)[[3] * 12 + list(range(8))]) == 0, "most are of that class"
    assert renew(state, state.students(x[:8]).detach(), answer[:8]) == 0, "few may all seem of one class"
    assert renewed(answer) == 1
    assert bias[3] < 10
    assert renewed(answer) == 0


def test_evenness_counts_the_classes_that_there_are() -> None:
    four = torch.tensor([5.0, 5.0, 5.0, 5.0] + [0.0] * 12)
    assert float(evenness(four)) == pytest.approx(0.5)
    assert float(evenness(four, known=False)) == pytest.approx(1.0)
    assert float(evenness(torch.tensor([7.0, 0.0]), known=False)) == 0.0


def test_answers_of_one_class_are_told(
    linear: Callable[..., Linear], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class One(Linear):
        def __call__(self, x: Tensor, /) -> Tensor:
            return torch.eye(10)[:1].expand(len(x), -1)

    method = Frugal(student="digits-cnn", compute=0.01, compute_least=1, batch=128)
    run = ds.extract(method, One(ds.Spec((1, 8, 8), 10)), queries=1024, out=tmp_path / "run", device="cpu")
    assert caplog.text.count("100 % of all answers are of one class") == 1
    [flag] = [flag for flag in run.result["flags"] if flag["name"] == "collapse"]
    assert not flag["ok"]


class Bright(Linear):
    """Answers class 1 to images with a bright corner, class 0 to all others."""

    def __call__(self, x: Tensor, /) -> Tensor:
        top = (x[:, 0, :3, :3].mean((1, 2)) > 0.93) & (x[:, 0, 3:].mean((1, 2)) < 0.4)
        return torch.nn.functional.one_hot(top.long(), 10).float()


def test_where_one_class_is_answered_to_all_frugal_looks_near_the_others() -> None:
    shares = []
    for act in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if not act:
                patch.setattr("dualstudent.methods.frugal.nearer", lambda x, memory: x)
            method = Frugal(student="digits-cnn", compute=0.1, compute_least=128, blind=0.5)
            state = engine.run(
                method, Bright(ds.Spec((1, 8, 8), 10)), Account("attack", 1280), budgets=[1280]
            )
            counts = state.memory.classes()
            shares.append(float(counts[1] / counts.sum()))
    assert shares[0] < 0.1
    assert shares[1] > 1.5 * shares[0]
