"""The engine's ways one by one, each with what it stands in for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualstudent.losses import disagreement
from dualstudent.methods.base import descend, frozen
from dualstudent.networks import Generator, Students, classifier, doubled, folded, pooled, winograd
from dualstudent.networks.classifiers import Shape

Run = Callable[[], object]
NEVER = 1 << 30  # channels that no layer has


@dataclass(frozen=True)
class Part:
    """One of the ways: `ours` and what it is compared with compute the same."""

    name: str
    on: str
    ours: Run
    other: Run


def rows(*shape: int) -> Tensor:
    """Return noise, pixel by pixel in memory."""
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@contextmanager
def setting(module: ModuleType, name: str, value: int) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def under(module: ModuleType, name: str, value: int, run: Run) -> Run:
    """Return a run for which one of the package's thresholds is another."""

    def changed() -> None:
        with setting(module, name, value):
            run()

    return changed


def direct(run: Run) -> Run:
    """Return a run without Winograd."""
    return under(winograd, "WIDE", NEVER, under(winograd, "SMALL", NEVER, run))


def asked(function: Callable[..., Tensor], *inputs: Any) -> Run:
    """Return a forward pass without a graph."""

    def run() -> None:
        with torch.no_grad():
            function(*inputs)

    return run


def both_ways(function: Callable[..., Tensor], *inputs: Tensor) -> Run:
    """Return forward and backward, gradients of all inputs."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    with torch.no_grad():
        g = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, g)


def learnt(network: nn.Module, x: Tensor) -> Run:
    """Return forward and backward, gradients of a network's weights."""
    weights = list(network.parameters())
    return lambda: torch.autograd.grad(network(x).square().mean(), weights)


def generator_parts() -> Iterator[Part]:
    for place, channels, side in (("first", 128, 8), ("second", 64, 16)):
        x, w = rows(256, 128, side, side), torch.randn(channels, 128, 3, 3)
        on = f"generator's {place} doubling, 128 → {channels}, {side}×{side}, batch 256, both ways"
        four = under(doubled, "WIDE", NEVER, both_ways(doubled.doubled, x, w))
        plain = both_ways(lambda x, w: F.conv2d(F.interpolate(x, scale_factor=2), w, padding=1), x, w)
        yield Part("upsampling and convolution in one, four taps", on, four, plain)
        yield Part("nine products (beside four taps)", on, both_ways(doubled.doubled, x, w), four)
    x, w = rows(256, 64, 32, 32), torch.randn(1, 64, 3, 3)
    on = "generator's last layer, 64 → 1, 32×32, batch 256, both ways"
    plain = both_ways(lambda x, w: F.conv2d(x, w, padding=1), x, w)
    yield Part("convolution to one channel as a matrix product", on, both_ways(doubled.narrow, x, w), plain)
    for name, arch, shape in (("b", "lenet5-half", (1, 32, 32)), ("c", "digits-cnn", (1, 8, 8))):
        yield Part("gradients into what steps only", f"generator's step, case {name}", *steps(arch, shape))


def steps(arch: str, shape: Shape) -> tuple[Run, Run]:
    """Return a generator's step as a method takes it, and with gradients into the students' weights, too."""
    generator = last(Generator(256, shape, (0.0, 1.0)))
    students = last(Students(arch, shape, 10, 2))
    descent = torch.optim.Adam(generator.parameters(), 1e-4, fused=True)

    def loss() -> Tensor:
        return -disagreement(students(generator(torch.randn(256, 256)))).mean()

    def own() -> None:
        with frozen(students):
            descend(descent, loss())

    def all_weights() -> None:
        students.zero_grad()
        descent.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        descent.step()

    return own, all_weights


def network_parts() -> Iterator[Part]:
    network, x = last(classifier("resnet18", (3, 32, 32), 10)), rows(64, 3, 32, 32)
    yield Part("Winograd", "ResNet-18, batch 64, both ways", learnt(network, x), direct(learnt(network, x)))
    x, w = rows(256, 32, 4, 4), torch.randn(64, 32, 3, 3)
    on, plain = "32 → 64 channels, 4×4, batch 256, both ways", both_ways(partial(F.conv2d, padding=1), x, w)
    yield Part("Winograd of one tile", on, both_ways(winograd.Winograd.apply, x, w), plain)
    for arch in ("lenet5", "lenet5-half"):
        network, x = last(classifier(arch, (1, 32, 32), 10)), rows(256, 1, 32, 32)
        for name, run, words in (
            ("convolution and pooling in one", asked, "asked"),
            ("pooling of few channels by maxima", learnt, "both ways"),
        ):
            apart = under(pooled, "FEW", 0, run(network, x))
            yield Part(name, f"{arch}, 32×32, batch 256, {words}", run(network, x), apart)
    network, x = classifier("digits-cnn", (1, 8, 8), 10), torch.randn(256, 1, 8, 8)
    plain = learnt(network, x)
    yield Part(
        "channels-last memory",
        "digits-cnn, 8×8, batch 256, both ways",
        learnt(last(classifier("digits-cnn", (1, 8, 8), 10)), x),
        plain,
    )
    for arch, shape, batch in (("digits-cnn", (1, 8, 8), 256), ("resnet34", (3, 32, 32), 64)):
        x = rows(batch, *shape)
        target = last(classifier(arch, shape, 10)).eval()
        inside = last(folded(classifier(arch, shape, 10).eval())).eval()
        on = f"{arch}, batch {batch}, asked"
        yield Part("BatchNorm folded into the target", on, asked(inside, x), asked(target, x))


def small_parts() -> Iterator[Part]:
    pixels, weights = torch.randn(1024, 128), torch.randn(384, 128)
    yield Part(
        "matrix products by oneDNN (used with AVX-512)",
        "1,024 × 128 × 384",
        under(winograd, "WIDER", True, asked(winograd.product, pixels, weights)),
        asked(lambda x, w: x @ w.t(), pixels, weights),
    )
    x = rows(256, 32, 8, 8)
    yield Part(
        "pooling before ReLU",
        "32 channels, 8×8, batch 256, both ways",
        both_ways(lambda x: F.relu(F.max_pool2d(x, 2)), x),
        both_ways(lambda x: F.max_pool2d(F.relu(x), 2), x),
    )
    x = rows(256, 6, 28, 28)
    yield Part(
        "pooling without a graph by maxima",
        "6 channels, 28×28, batch 256",
        asked(pooled.pooled, x),
        asked(lambda x: F.relu(F.max_pool2d(x, 2)), x),
    )
    for name, arch, shape in (("b", "lenet5-half", (1, 32, 32)), ("c", "digits-cnn", (1, 8, 8))):
        yield Part("fused optimisers", f"a student's SGD, case {name}", *optimisers(arch, shape))


def optimisers(arch: str, shape: Shape) -> tuple[Run, Run]:
    """Return a step of a student's SGD, fused and as torch does it by itself."""
    runs: list[Run] = []
    for fused in (True, None):
        network = last(classifier(arch, shape, 10))
        for weight in network.parameters():
            weight.grad = torch.randn_like(weight)
        descent = torch.optim.SGD(network.parameters(), 1e-6, 0.9, weight_decay=5e-4, fused=fused)
        runs.append(descent.step)
    return runs[0], runs[1]


def parts() -> Iterator[Part]:
    """Return all parts, each made when its turn comes."""
    yield from generator_parts()
    yield from network_parts()
    yield from small_parts()
