"""Memory: what is kept, and which classes are in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dualstudent as ds
from dualstudent.memory import Memory


def test_classes_of_a_memory() -> None:
    memory = Memory(4, ds.Spec((1, 2, 2), 3))
    for top in ([0, 1], [1, 1], [2, 2]):
        memory.add(torch.rand(2, 1, 2, 2), torch.eye(3)[torch.tensor(top)])
    assert memory.classes().tolist() == [0, 2, 2], "of those that are kept"


@pytest.mark.parametrize("hard", [True, False])
@given(
    capacity=st.integers(5, 12),
    batches=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=9),
)
def test_classes_are_those_of_what_is_kept(hard: bool, capacity: int, batches: list[list[int]]) -> None:
    """Counted as they come and go, and anew from a snapshot; outputs may grow where labels are answered."""
    spec = ds.Spec((1, 2, 2), None if hard else 4, access=ds.Access.LABEL if hard else ds.Access.PROBS)
    memory, outputs = Memory(capacity, spec), 0 if hard else 4
    kept: list[int] = []
    for tops in batches:
        outputs = max(outputs, max(tops) + 1)
        memory.add(torch.rand(len(tops), 1, 2, 2), torch.eye(outputs)[torch.tensor(tops)])
        kept = [*kept, *tops][-capacity:]
        assert memory.classes().tolist() == [kept.count(k) for k in range(outputs)]
    again = Memory(capacity, spec)
    again.load_state_dict(memory.state_dict())
    assert again.classes().tolist() == memory.classes().tolist()


def test_a_memory_draws_all_classes_alike() -> None:
    memory = Memory(1000, ds.Spec((1, 2, 2), 3))
    memory.add(torch.rand(1000, 1, 2, 2), torch.eye(3)[(torch.arange(1000) % 100 == 0).long()])
    drawn = memory.draw_even(2000)[1].mean(0)
    assert drawn.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=0.05)


@pytest.mark.parametrize("grain", [0.0, 0.03])
def test_what_is_drawn_with_grain_is_off_by_noise_in_units_of_the_range(grain: float) -> None:
    memory = Memory(4, ds.Spec((1, 64, 64), 3, bounds=(-1.0, 3.0)))
    memory.add(memory.rounded(torch.full((4, 1, 64, 64), 0.5)), torch.eye(3)[[0, 1, 2, 0]])
    x, answer = memory.draw(50, grain)
    assert x.sub(memory.rounded(torch.full((1, 1, 1, 1), 0.5))).std().item() == pytest.approx(
        4 * grain, rel=0.02
    )
    assert answer.sum(1).tolist() == [1.0] * 50
    assert (memory.images == memory.images[0, 0, 0, 0]).all(), "what is remembered stays as it was asked"
