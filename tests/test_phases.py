"""A plan spends its budget to the last query; seeds, rates and gradients are where they belong."""

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dualstudent as ds
from dualstudent import engine, parallel
from dualstudent.methods import Phase, find
from dualstudent.methods.base import constant, cut, descend, optimisers, pace, spend, split, steps_down
from dualstudent.numerics import Numerics

quick = settings(max_examples=150, deadline=None)
batch_sizes, batch_counts = st.integers(2, 40), st.integers(1, 6)
legs = st.lists(st.integers(2, 1500), min_size=1, max_size=3).map(
    lambda steps: list(itertools.accumulate(steps))
)


def plan(
    budget: int, done: int = 0, *, batch: int = 8, batches: int = 5, schedule: Any = constant
) -> list[Phase[Any]]:
    """Plan steps that return the sizes they were given, to be read by `sizes`."""

    def step(state: object, oracle: object, sizes: Sequence[int]) -> dict[str, Tensor]:
        return {"sizes": torch.tensor(sizes)}

    return spend(step, budget, done, batch=batch, batches=batches, schedule=schedule)


def sizes(phase: Phase[Any]) -> list[int]:
    nothing: Any = None
    found: list[int] = phase.step(nothing, nothing)["sizes"].tolist()
    return found


def progresses(budgets: list[int], **more: Any) -> list[tuple[int, float]]:
    """Return (images asked before, progress) of every step of a run extended leg by leg."""
    steps, done = [], 0
    for budget in budgets:
        for phase in plan(budget, done, schedule=lambda progress: progress, **more):
            for i in range(phase.steps):
                steps.append((done, phase.schedule(i / phase.steps)))
                done += phase.cost
    return steps


class TestSplit:
    @quick
    @given(st.integers(1, 2000), st.integers(3, 300))
    def test_few_batches_nearly_equal(self, images: int, batch: int) -> None:
        parts = split(images, batch)
        assert sum(parts) == images
        assert max(parts) <= batch
        assert max(parts) - min(parts) <= 1
        assert (len(parts) - 1) * batch < images


class TestSpend:
    @quick
    @given(legs, batch_sizes, batch_counts)
    def test_to_the_last_query(self, budgets: list[int], batch: int, batches: int) -> None:
        done = 0
        for budget in budgets:
            phases = plan(budget, done, batch=batch, batches=batches)
            assert sum(phase.steps * phase.cost for phase in phases) == budget - done
            for phase in phases:
                assert phase.cost == sum(sizes(phase))
                assert max(sizes(phase)) <= max(3, batch)  # three images are not cut into two and one
                assert phase.steps >= 1
            done = budget

    @quick
    @given(legs, st.integers(2, 40), batch_counts)
    def test_every_batch_has_statistics(self, budgets: list[int], batch: int, batches: int) -> None:
        for done, budget in itertools.pairwise([0, *budgets]):
            for phase in plan(budget, done, batch=batch, batches=batches):
                assert min(sizes(phase)) >= 2

    @quick
    @given(st.integers(2, 1500), batch_sizes, batch_counts)
    def test_full_steps_as_long_as_they_last(self, budget: int, batch: int, batches: int) -> None:
        full = batch * batches
        phases = {phase.name: phase for phase in plan(budget, batch=batch, batches=batches)}
        if "steps" in phases:
            assert sizes(phases["steps"]) == [batch] * batches
        rest = phases["rest"].cost if "rest" in phases else 0
        assert rest < full or (rest == full + 1 and budget % full == 1)
        assert "rest" not in phases or phases["rest"].steps == 1

    @pytest.mark.parametrize(
        ("budget", "expected"),
        [
            (2, [(1, [2])]),
            (39, [(1, [8, 8, 8, 8, 7])]),
            (40, [(1, [8] * 5)]),
            (41, [(1, [7, 7, 7, 7, 7, 6])]),
            (80, [(2, [8] * 5)]),
            (81, [(1, [8] * 5), (1, [7, 7, 7, 7, 7, 6])]),
            (97, [(2, [8] * 5), (1, [6, 6, 5])]),
        ],
    )
    def test_by_hand(self, budget: int, expected: list[tuple[int, list[int]]]) -> None:
        assert [(phase.steps, sizes(phase)) for phase in plan(budget)] == expected

    @pytest.mark.parametrize(("budget", "done"), [(1, 0), (0, 0), (-7, 0), (41, 40), (40, 40), (40, 80)])
    def test_less_than_two_are_refused(self, budget: int, done: int) -> None:
        with pytest.raises(ds.UserError, match="at least 2"):
            plan(budget, done)


class TestSchedule:
    @quick
    @given(legs, batch_sizes, batch_counts)
    def test_progress_is_the_share_of_the_budget_asked(
        self, budgets: list[int], batch: int, batches: int
    ) -> None:
        """In the rest phase and after an extension, too."""
        for done, progress in progresses(budgets, batch=batch, batches=batches):
            goal = next(budget for budget in budgets if budget > done)
            assert progress == pytest.approx(done / goal, abs=1e-12)
            assert 0 <= progress < 1

    @quick
    @given(st.integers(2, 1500), batch_sizes, batch_counts, st.lists(st.floats(0, 1), min_size=1, max_size=4))
    def test_rates_never_rise(self, budget: int, batch: int, batches: int, at: list[float]) -> None:
        phases = plan(budget, batch=batch, batches=batches, schedule=steps_down(*at))
        factors = [phase.schedule(i / phase.steps) for phase in phases for i in range(phase.steps)]
        assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
        assert factors[0] == pytest.approx(0.3 ** at.count(0))

    def test_steps_down_at_each_point(self) -> None:
        down = steps_down(0.1, 0.3, 0.5)
        found = [down(progress) for progress in (0.0, 0.0999, 0.1, 0.2999, 0.3, 0.5, 0.99)]
        assert found == pytest.approx([1, 1, 0.3, 0.3, 0.09, 0.027, 0.027])
        assert steps_down(0.5, factor=0.1)(0.5) == pytest.approx(0.1)

    def test_cut_is_a_part(self) -> None:
        part = cut(lambda progress: progress, 0.2, 0.6)
        assert [part(0.0), part(0.5)] == pytest.approx([0.2, 0.4])
        assert constant(0.7) == 1.0


@dataclass
class Two:
    """A state with two optimisers and something else."""

    student: torch.optim.SGD
    generator: torch.optim.Adam
    clone: Any = None


def two() -> Two:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    return Two(torch.optim.SGD(a.parameters(), 0.4, 0.9), torch.optim.Adam(b.parameters(), 0.01))


def rates(state: Two) -> list[float]:
    return [group["lr"] for optimiser in optimisers(state) for group in optimiser.param_groups]


class TestPace:
    def test_is_of_the_initial_rate(self) -> None:
        state = two()
        assert optimisers(state) == [state.student, state.generator]
        for factor in (0.5, 0.5, 0.1, 1.0):
            pace(state, factor)
            assert rates(state) == pytest.approx([0.4 * factor, 0.01 * factor])

    def test_the_initial_rate_survives_a_snapshot(self) -> None:
        """`load_state_dict` replaces the group dictionaries: a reference to one would go stale."""
        before, after = two(), two()
        pace(before, 0.3)
        pace(after, 1.0)
        for old, new in zip(optimisers(before), optimisers(after), strict=True):
            new.load_state_dict(old.state_dict())
        assert rates(after) == pytest.approx([0.12, 0.003])
        pace(after, 0.5)
        assert rates(after) == pytest.approx([0.2, 0.005])


class TestDescend:
    def test_touches_its_own_parameters_alone(self) -> None:
        mine, others = torch.tensor([3.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
        optimiser = torch.optim.SGD([mine], 0.1)
        descend(optimiser, (mine * others).sum())
        assert mine.item() == pytest.approx(3 - 0.1 * 5)
        assert others.item() == 5.0
        assert others.grad is None

    def test_half_precision_follows_the_weights(self) -> None:
        """A copy of the weights in half precision must not outlive the step that moves them."""
        torch.manual_seed(0)
        network, x = nn.Linear(8, 3), torch.rand(5, 8)
        optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
        with Numerics("bf16").casting("cpu"):
            descend(optimiser, network(x).float().square().mean())
            inside = network(x)
        with Numerics("bf16").casting("cpu"):
            assert torch.equal(inside, network(x))

    def test_each_step_has_a_gradient_of_its_own(self) -> None:
        weight = torch.tensor([1.0], requires_grad=True)
        optimiser = torch.optim.SGD([weight], 0.1)
        for _ in range(3):
            descend(optimiser, weight.sum())
        assert weight.item() == pytest.approx(1 - 0.3)

    def test_a_graph_through_frozen_students_reaches_the_generator(self) -> None:
        generator, student = nn.Linear(2, 3), nn.Linear(3, 4)
        before = [p.detach().clone() for p in generator.parameters()]
        loss = student(generator(torch.randn(5, 2))).square().mean()
        descend(torch.optim.SGD(generator.parameters(), 0.1), loss)
        assert all(p.grad is None for p in student.parameters())
        assert not any(torch.equal(p, old) for p, old in zip(generator.parameters(), before, strict=True))


class TestRecipe:
    @pytest.mark.parametrize(
        ("options", "flag"),
        [
            ({"batch": 1}, "--batch 1"),
            ({"students": 1}, "--students 1"),
            ({"student_steps": 0}, "--student-steps 0"),
            ({"rate_soft": -0.1}, "--rate-soft"),
            ({"rate_hard": float("nan")}, "--rate-hard"),
            ({"average": 1.0}, "--average"),
            ({"max_classes": 1}, "--max-classes"),
        ],
    )
    def test_an_option_out_of_range_is_named_as_it_is_typed(self, options: dict[str, Any], flag: str) -> None:
        with pytest.raises(ds.UserError, match=flag):
            ds.DualStudent(**options)

    def test_presets_and_methods_by_name(self) -> None:
        kind = find("dual-student")
        assert kind.preset("paper") == ds.DualStudent()
        assert kind.preset("small") != ds.DualStudent()
        with pytest.raises(ds.UserError, match="did you mean 'small'"):
            kind.preset("smal")
        with pytest.raises(ds.UserError, match="did you mean 'dual-student'"):
            find("dualstudent")


class TestParallel:
    def test_one_process_is_rank_zero_of_one(self) -> None:
        assert (parallel.rank(), parallel.world(), parallel.shard(7)) == (0, 1, 7)

    def test_randomness_is_a_function_of_seed_step_and_rank(self) -> None:
        def drawn(*key: int) -> tuple[float, ...]:
            torch.rand(3)
            parallel.seed_step(*key)
            return tuple(torch.rand(2).tolist())

        keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 23, 4), (12, 3, 4), (1, 2, 34), (-1, 0, 0)]
        assert len({drawn(*key) for key in keys}) == len(keys)
        assert [drawn(*key) for key in keys] == [drawn(*key) for key in keys]

    @pytest.mark.parametrize(("images", "ranks"), [(7, 3), (8, 4), (2, 4), (256, 5), (0, 2)])
    def test_shares_are_nearly_equal(self, images: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parallel, "world", lambda: ranks)
        shares = []
        for rank in range(ranks):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            shares.append(parallel.shard(images))
        assert sum(shares) == images
        assert max(shares) - min(shares) <= 1

    def test_two_processes_descend_the_mean_of_their_losses(self, tmp_path: Path) -> None:
        script = """
import json, sys
import torch, torch.distributed as dist
from dualstudent import parallel
from dualstudent.methods.base import descend
rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
shapes = [(2, 3), (4,), ()]
weights = [torch.zeros(shape, requires_grad=True) for shape in shapes]
unused = torch.zeros(2, requires_grad=True)
targets = [torch.arange(1.0, w.numel() + 1).view(w.shape) * (10 if rank else 1) for w in weights]
loss = sum((w * t).sum() for w, t in zip(weights, targets))
descend(torch.optim.SGD([*weights, unused], lr=1.0), loss)
parallel.seed_step(5, 6, parallel.rank())
print(json.dumps({
    "rank": parallel.rank(), "world": parallel.world(), "shard": parallel.shard(7),
    "gradients": [w.grad.flatten().tolist() for w in weights],
    "weights": [w.flatten().tolist() for w in weights],
    "unused": unused.grad is None, "draw": torch.rand(2).tolist(),
}))
dist.destroy_process_group()
"""
        command = [sys.executable, "-c", script]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
            )
            for rank in (0, 1)
        ]
        zero, one = (json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks)
        mean = [[5.5 * i for i in range(1, n + 1)] for n in (6, 4, 1)]
        for at, found in enumerate((zero, one)):
            assert (found["rank"], found["world"], found["shard"]) == (at, 2, 4 - at)
            assert found["gradients"] == mean
            assert found["weights"] == [[-value for value in row] for row in mean]
            assert found["unused"]
        assert zero["draw"] != one["draw"]


def test_phases_that_only_learn_are_compiled_as_one() -> None:
    """Short as each of them is; those that ask are judged one by one."""

    def of(*phases: tuple[int, int]) -> list[bool]:
        made: list[Phase[Any]] = [Phase("p", lambda state, oracle: {}, steps, cost) for steps, cost in phases]
        return engine._compiled(made, Numerics())

    assert of((300, 8), (150, 8), (150, 0), (60, 0)) == [True, False, True, True]
    assert of((150, 0), (300, 8), (60, 0)) == [False, True, False]
