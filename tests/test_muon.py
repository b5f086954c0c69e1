"""Muon: what its steps are like, whose weights they move, and that all else is AdamW's."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dualstudent.muon import LENGTH, Muon, hidden, orthogonal
from dualstudent.networks import classifier


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


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_step_is_as_long_as_one_of_adamw_whatever_the_gradient(scale: float) -> None:
    network = classifier("lenet5", (1, 12, 12), 10)
    before = [p.detach().clone() for p in hidden(network)]
    for p in network.parameters():
        p.grad = scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    Muon([network], 0.01, 0.0).step()
    for old, new in zip(before, hidden(network), strict=True):
        rank, most = min(old.flatten(1).shape), max(old.flatten(1).shape)
        step = (new - old).norm() / 0.01 / LENGTH / most**0.5  # singular values, root of their squares' sum
        assert 0.5 * rank**0.5 < step < 1.25 * rank**0.5


def test_all_else_steps_as_by_adamw() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))  # a head alone
    other = copy.deepcopy(network)
    _learnt(Muon([network], 0.01, 0.3), network)
    _learnt(torch.optim.AdamW(other.parameters(), 0.01, weight_decay=0.3, fused=True), other)
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
