"""The lie detector of eq. 4: honest recipes pass, recipes broken on purpose are caught."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, losses
from dualstudent.evaluation import Witness, before, bound
from dualstudent.ledger import Account
from dualstudent.methods import dual_student, game
from dualstudent.methods.base import descend
from dualstudent.methods.dual_student import DualStudent, DualStudentState
from dualstudent.methods.game import noise, told
from dualstudent.oracle import Oracle

QUICK: dict[str, Any] = {"batch": 16, "width": 8, "noise_size": 16, "student": "digits-cnn"}
every_access = pytest.mark.parametrize("access", [ds.Access.PROBS, ds.Access.LABEL])


def looked_at(method: DualStudent, target: Linear, budget: int = 400) -> list[dict[str, Any]]:
    """The bound of every step of a run, each with the witness that a recorder would have."""
    found: list[dict[str, Any]] = []
    students: list[Any] = []

    def watch(moment: engine.Moment[Any]) -> bool:
        witness = Witness(students.pop(), moment.asked, moment.state.clone.ids)
        limits = bound(moment.metrics, target.spec, witness)
        assert limits is not None
        found.append(limits)
        students.append(before(moment.state))
        return False

    engine.run(
        method,
        target,
        Account("attack", budget),
        budgets=[budget],
        watch=watch,
        resumed=lambda step, state: students.append(before(state)),
    )
    return found


def faults(method: DualStudent, target: Linear, budget: int = 400) -> str:
    return " / ".join(fault for limits in looked_at(method, target, budget) for fault in limits["faults"])


@every_access
@pytest.mark.parametrize("preset", DualStudent.presets)
def test_honest_recipes_keep_the_bound(preset: str, access: ds.Access, linear: Callable[..., Linear]) -> None:
    found = looked_at(replace(DualStudent.preset(preset), **QUICK), linear(access=access))
    assert all(limits["faults"] == [] and limits["gap"] <= limits["error"] for limits in found)
    assert any(limits["tightness"] for limits in found)


@pytest.mark.parametrize("more", [{"levels": 256}, {"bounds": (-1.0, 1.0)}, {"shape": (3, 16, 12)}])
def test_honest_in_other_input_spaces(more: dict[str, Any], linear: Callable[..., Linear]) -> None:
    assert faults(DualStudent(**{**QUICK, "students": 3}), linear(**more)) == ""


def test_honest_with_unknown_classes() -> None:
    target = Linear(ds.Spec((1, 8, 8), None, access=ds.Access.LABEL), width=6)
    assert faults(DualStudent(**QUICK, max_classes=9), target) == ""


@dataclass(frozen=True)
class AsksInTurns(DualStudent):
    """Honest: one question a batch."""

    def ask(
        self, state: DualStudentState, oracle: Oracle, sizes: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            images = [state.generator(noise(state.generator, size)) for size in sizes]
        return [(x, told(state.students, oracle(x))) for x in images]


def test_honest_in_several_questions_with_unknown_classes() -> None:
    """Each exchange is as wide as its own largest label."""

    class Narrow(Linear):
        def __call__(self, x: Tensor, /) -> Tensor:
            answer = super().__call__(x)
            return answer[:, : int(answer.argmax(1).max()) + 1]

    target = Narrow(ds.Spec((1, 8, 8), None, access=ds.Access.LABEL), width=6)
    assert faults(AsksInTurns(**QUICK, max_classes=9), target) == ""


def test_a_target_that_answers_at_random_is_no_fault_of_the_recipe() -> None:
    class Random(Linear):
        def __call__(self, x: Tensor, /) -> Tensor:
            self.seen += len(x)
            return torch.rand(len(x), 4).softmax(1)

    target = Random(ds.Spec((1, 8, 8), 4, levels=2))
    method = DualStudent(**QUICK | {"noise_size": 1, "batch": 61})
    assert faults(method, target, 1500) == ""


class Dropping(nn.Module):
    """A student of the user's own that answers differently each time."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(x.flatten(1), 0.3, self.training))  # type: ignore[no-any-return]


def test_students_with_a_random_part_are_not_accused(linear: Callable[..., Linear]) -> None:
    assert faults(DualStudent(**QUICK | {"student": "torch:test_bound:Dropping"}), linear()) == ""


class LogProbabilities(Dropping):
    """A student in another space than the target's recovered logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)).log_softmax(1)  # type: ignore[no-any-return]


class Probabilities(Dropping):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)).softmax(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("student", ["LogProbabilities", "Probabilities"])
def test_students_that_give_no_logits_are_caught(student: str, linear: Callable[..., Linear]) -> None:
    found = faults(DualStudent(**QUICK | {"student": f"torch:test_bound:{student}"}), linear())
    assert "two spaces" in found


@dataclass(frozen=True)
class ClimbsBefore(DualStudent):
    """Broken: the generator step sees images before tanh, the student step after it."""

    honest: bool = False  # whether it records what it did

    def climb(self, state: DualStudentState) -> dict[str, Tensor]:
        x = state.generator.preactivation(noise(state.generator, self.batch))
        logits = state.students(x)
        gap = losses.disagreement(logits).mean()
        descend(state.generator_descent, -gap)
        shown = x.detach() if self.honest else (x.detach().tanh() + 1) / 2
        return {"gap": gap.detach(), "generator/images": shown, "generator/logits": logits.detach()}


@dataclass(frozen=True)
class ClimbsProbabilities(DualStudent):
    """Broken: the generator climbs the disagreement of probabilities, and says so throughout."""

    def climb(self, state: DualStudentState) -> dict[str, Tensor]:
        x = state.generator(noise(state.generator, self.batch))
        logits = state.students(x).softmax(2)
        gap = losses.disagreement(logits).mean()
        descend(state.generator_descent, -gap)
        return {"gap": gap.detach(), "generator/images": x.detach(), "generator/logits": logits.detach()}


@dataclass(frozen=True)
class LearnsOther(DualStudent):
    """Broken: the students learn something else than what was asked and answered."""

    what: str = ""

    def imitate(
        self,
        state: DualStudentState,
        spec: ds.Spec,
        x: Tensor,
        answer: Tensor,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        learnt = {
            "before tanh": (torch.atanh((2 * x - 1).clamp(-0.999, 0.999)), answer),
            "others": (x.flip(3), answer),
            "shuffled": (x, answer.roll(1, 0)),
        }[self.what]
        loss = super().imitate(state, spec, *learnt, metrics)
        if self.what == "before tanh" and self.max_classes == 7:
            metrics["student/images"] = x  # and lies about it
        return loss


@pytest.mark.parametrize(
    ("method", "word"),
    [
        (ClimbsBefore(**QUICK, honest=True), "not the images that are asked"),
        (ClimbsBefore(**QUICK), "other logits than the students give"),
        (ClimbsProbabilities(**QUICK), "other logits than the students give"),
        (LearnsOther(**QUICK, what="before tanh"), "the students learnt on values in"),
        (LearnsOther(**QUICK, what="before tanh", max_classes=7), "other logits than the students give"),
        (LearnsOther(**QUICK, what="others"), "images that the target was not asked"),
        (LearnsOther(**QUICK, what="shuffled"), "answers that are not the target's"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@every_access
def test_broken_recipes_are_caught(
    method: DualStudent, word: str, access: ds.Access, linear: Callable[..., Linear]
) -> None:
    assert word in faults(method, linear(access=access))


def test_mismatched_logit_spaces_are_caught(
    linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The students learn log p without its mean removed, the bound is in recovered logits."""
    monkeypatch.setattr(game, "recover_logits", lambda p: p.clamp_min(1e-38).log())
    assert "another space" in faults(DualStudent(**QUICK), linear())


def test_disagreement_of_probabilities_is_caught(
    linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dual_student, "disagreement", lambda s: losses.disagreement(s.softmax(2)))
    assert "generator climbed" in faults(DualStudent(**QUICK), linear())


def test_argmax_of_soft_labels_is_caught(
    linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silently_hard(s: Tensor, t: Tensor) -> Tensor:
        return losses.cross_entropy(s, torch.nn.functional.one_hot(t.argmax(1), t.shape[1]).float())

    monkeypatch.setattr(game, "l1", silently_hard)
    assert "another space" in faults(DualStudent(**QUICK), linear())
