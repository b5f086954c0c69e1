"""Muon: what its steps are like, whose weights they move, and that all else is AdamW's."""

import copy
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dualstudent import threads
from dualstudent.methods.base import descend
from dualstudent.muon import Muon, hidden, orthogonal
from dualstudent.networks import classifier
from dualstudent.numerics import Numerics


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 1000), st.sampled_from((1e-6, 1.0, 1e6)))
def test_orthogonal_keeps_the_directions_and_evens_their_lengths(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=random), full_matrices=False)
    lengths = torch.logspace(0, -1, min(rows, columns))
    made = u.t() @ orthogonal(scale * u @ lengths.diag() @ v) @ v.t()
    assert made.diagonal().min() > 0.6
    assert made.diagonal().max() < 1.25
    assert (made - made.diagonal().diag()).abs().max() < 1e-3


def test_no_gradient_is_no_direction() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("arch", ["digits-cnn", "lenet5", "resnet8"])
def test_hidden_weights_are_all_matrices_but_the_head(arch: str) -> None:
    network = classifier(arch, (3, 32, 32), 10)
    chosen = {id(p) for p in hidden(network)}
    for name, p in network.named_parameters():
        assert (id(p) in chosen) == (p.ndim > 1 and name != "head.weight"), name


def _learnt(optimiser: torch.optim.Optimizer, network: nn.Module, steps: int = 3) -> None:
    x = torch.randn(16, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimiser.zero_grad()
        network(x).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("scale", [1e-12, 1e-25, 1e-38, 0.0])
def test_gradients_that_vanish_stay_finite(scale: float) -> None:
    """A branch that died leaves momentum that falls below what float32 can square."""
    made = orthogonal(scale * torch.randn(6, 9, generator=torch.Generator().manual_seed(0)))
    assert made.isfinite().all()
    assert made.abs().max() <= 1.3


def test_a_dead_branch_does_no_harm() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 6), nn.Linear(6, 6), nn.Linear(6, 10))
    optimiser = Muon([network], 6e-3, 0.3)
    _learnt(optimiser, network)
    for _ in range(2000):
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        optimiser.step()
    assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_step_is_as_long_as_one_of_adamw_whatever_the_gradient(scale: float) -> None:
    """A fifth of the rate, root mean square, where all directions are there."""
    network = classifier("lenet5", (1, 12, 12), 10)
    before = [p.detach().clone() for p in hidden(network)]
    for p in network.parameters():
        p.grad = scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    Muon([network], 0.01, 0.0).step()
    for old, new in zip(before, hidden(network), strict=True):
        assert 0.7 * 0.002 < (new - old).square().mean().sqrt() < 1.2 * 0.002


def test_momentum_is_nesterovs() -> None:
    """Of two opposite gradients the second wins: 0.05 of the first is what is remembered of it."""
    p = nn.Linear(6, 4, bias=False)
    network = nn.Sequential(p, nn.Linear(4, 2))
    optimiser = Muon([network], 0.01, 0.0)
    one, other = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2)).unbind()
    momentum, expected = torch.zeros(4, 6), p.weight.detach().clone()
    for grad in (one, other):
        network[1].weight.grad = None
        p.weight.grad = grad.clone()
        optimiser.step()
        momentum = 0.95 * momentum + 0.05 * grad
        expected -= 0.01 * 0.2 * 6**0.5 * orthogonal(0.05 * grad + 0.95 * momentum)
    torch.testing.assert_close(p.weight.detach(), expected)


@pytest.mark.parametrize("alone", [True, False])
def test_all_else_steps_as_by_adamw(alone: bool) -> None:
    """A head alone; biases, statistics and head of a whole network, given the same gradients."""
    network = (
        nn.Sequential(nn.Flatten(), nn.Linear(144, 10)) if alone else classifier("resnet8", (1, 12, 12), 4)
    )
    other, chosen = copy.deepcopy(network), [id(p) for p in hidden(network)]
    mine, theirs = Muon([network], 0.01, 0.3), torch.optim.AdamW(other.parameters(), 0.01, weight_decay=0.3)
    for _ in range(3):
        for p, q in zip(network.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step()
        theirs.step()
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        if id(p) in chosen:
            assert not torch.equal(p, q)
        else:
            torch.testing.assert_close(p, q)
    assert len(chosen) == (0 if alone else 9)


def test_a_closure_is_called_first() -> None:
    network = classifier("lenet5", (1, 12, 12), 10)
    other = copy.deepcopy(network)
    _learnt(Muon([network], 0.01, 0.3), network, steps=1)
    optimiser = Muon([other], 0.01, 0.3)

    def closure() -> torch.Tensor:
        x = torch.randn(16, 1, 12, 12, generator=torch.Generator().manual_seed(1))
        loss: torch.Tensor = other(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimiser.step(closure) > 0
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), other.parameters(), strict=True))


def test_weights_decay_by_rate_and_decay_alone() -> None:
    network = classifier("lenet5", (1, 12, 12), 10)
    optimiser = Muon([network], 0.1, 0.5)
    before = [p.detach().clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for old, new in zip(before, network.parameters(), strict=True):
        torch.testing.assert_close(new, 0.95 * old)


def test_a_rate_in_a_tensor_means_the_same() -> None:
    """A captured program finds its learning rate in a tensor (methods.base.capturable)."""
    network = classifier("lenet5", (1, 12, 12), 10)
    other = copy.deepcopy(network)
    _learnt(Muon([network], 0.01, 0.3), network)
    optimiser = Muon([other], 0.01, 0.3)
    for group in optimiser.param_groups:
        group["lr"] = torch.tensor(0.01)
    _learnt(optimiser, other)
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_products_are_float32_in_a_run_in_bf16() -> None:
    network = classifier("lenet5", (1, 12, 12), 10)
    other = copy.deepcopy(network)
    for each, on in ((network, False), (other, True)):
        for p in each.parameters():
            p.grad = torch.linspace(-1, 1, p.numel()).view_as(p) ** 3
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            Muon([each], 0.01, 0.3).step()
    assert all(map(torch.equal, network.parameters(), other.parameters()))


def test_a_stopped_optimiser_goes_on_bit_for_bit() -> None:
    network = classifier("lenet5", (1, 12, 12), 10)
    optimiser = Muon([network], 0.01, 0.3)
    _learnt(optimiser, network)
    other = copy.deepcopy(network)
    again = Muon([other], 0.01, 0.3)
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    _learnt(optimiser, network)
    _learnt(again, other)
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), other.parameters(), strict=True))


def test_two_networks_are_stepped_each_for_itself() -> None:
    networks = [classifier("lenet5", (1, 12, 12), 10) for _ in range(2)]
    still = copy.deepcopy(networks[1])
    optimiser = Muon(networks, 0.01, 0.3)
    _learnt(optimiser, networks[0])  # no gradient reaches the other
    assert all(torch.equal(*pair) for pair in zip(networks[1].parameters(), still.parameters(), strict=True))


def test_two_networks_are_stepped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits until the other is at work, too."""
    met, turns = threading.Barrier(2), Muon._turns

    def meet(optimiser: Muon, weights: Any, group: Any) -> None:
        met.wait(20)
        turns(optimiser, weights, group)

    monkeypatch.setattr(Muon, "_turns", meet)
    networks = [classifier("lenet5", (1, 12, 12), 10) for _ in range(2)]
    before = copy.deepcopy(networks)
    optimiser = Muon(networks, 0.01, 0.3)
    threads.side_by_side(2)
    for network in networks:
        network(torch.rand(4, 1, 12, 12)).sum().backward()
    optimiser.step()
    for mine, old in zip(networks, before, strict=True):
        assert not any(map(torch.equal, hidden(mine), hidden(old)))


def test_optimisers_step_in_one_thread() -> None:
    """Whatever is told, and the others are there again after it, an error of the step included."""
    network, seen = nn.Linear(2, 2), list[int]()

    class Watched(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            seen.append(torch.get_num_threads())
            if len(seen) == 2:
                raise ValueError("it failed")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        descend(Watched(network.parameters(), 0.1), network(torch.ones(1, 2)).sum())
        assert (seen, torch.get_num_threads()) == ([1], 2)
        optimiser = Watched(network.parameters(), 0.1)
        with pytest.raises(ValueError, match="it failed"):
            descend(optimiser, network(torch.ones(1, 2)).sum())
        assert (seen, torch.get_num_threads()) == ([1, 1], 2)
    finally:
        torch.set_num_threads(before)


def test_steps_are_as_exact_where_networks_compute_in_half() -> None:
    """On a CPU its products are in float32, whatever the precision of the run: they are small."""
    exact = classifier("digits-cnn", (1, 12, 12), 10)
    half = copy.deepcopy(exact)
    for network in (exact, half):
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    Muon([exact], 6e-3, 0.3).step()
    with Numerics("bf16").casting("cpu"):
        Muon([half], 6e-3, 0.3).step()
    for a, b in zip(exact.parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b)
