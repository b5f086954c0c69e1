"""The engine computes what the plain loop of benchmarks/engine computes, in float64, per operation."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualstudent as ds
from dualstudent.ledger import Account
from dualstudent.methods.base import modules
from dualstudent.networks import classifier, folded, pooled, winograd
from dualstudent.networks.doubled import Doubled, doubled, narrow
from dualstudent.networks.pooled import PooledConv
from dualstudent.networks.winograd import WIDE, WideConv, Winograd
from dualstudent.oracle import Oracle
from dualstudent.targets import ModuleTarget

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "engine"))
from plain import Plain, PlainGenerator, plain_classifier

CASES = {  # target, student, shape, generator's width, batch; the wide one goes Winograd's way
    "lenet": ("lenet5", "lenet5-half", (1, 32, 32), 64, 3),
    "digits": ("digits-cnn", "digits-cnn", (1, 8, 8), 16, 6),
    "resnet": ("resnet18", "resnet18", (3, 9, 10), 4, 3),
}
Pair = tuple[Plain, ds.DualStudent, Any, Oracle, int]


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Exact(ModuleTarget):
    """The same target with rows in float64: the package's own are float32."""

    def __call__(self, x: Tensor, /) -> Tensor:
        rows: Tensor = self.module(x).softmax(1)
        return rows


def pair(case: str, hard: bool) -> Pair:
    """Return the plain loop and the engine's method with the same weights, in training mode."""
    arch, student, shape, width, batch = CASES[case]
    torch.manual_seed(0)
    method = ds.DualStudent(student=student, width=width, noise_size=8, batch=batch)
    network = classifier(arch, shape, 5)
    network(torch.rand(8, *shape))  # running statistics other than 0 and 1
    network.eval()
    copy = plain_classifier(arch, shape, 5).eval()
    copy.load_state_dict(network.state_dict())
    access = ds.Access.LABEL if hard else ds.Access.PROBS
    spec = ds.Spec(shape, 5, access=access)
    state = method.init(spec)
    students = [plain_classifier(student, shape, 5) for _ in range(2)]
    for mine, theirs in zip(students, state.students.members, strict=True):
        mine.load_state_dict(theirs.state_dict())
    plain = Plain(copy, students, PlainGenerator(8, shape, width), hard=hard, noise=8)
    plain.generator.load_state_dict(state.generator.state_dict())
    for module in modules(state):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    target: Any = Exact(folded(network), ds.Spec(shape, 5), output="logits")
    return plain, method, state, Oracle(labels(target) if hard else target, Account("test")), batch


def labels(target: Any) -> Any:
    from dualstudent.defences import LabelOnly

    return LabelOnly(target)


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-9) -> None:
    assert len(ours) == len(theirs) > 0
    scale = max(t.abs().max().item() for t in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max().item() <= tolerance * max(other.abs().max().item(), 1e-3 * scale)


every_case = pytest.mark.parametrize("case", CASES)
both_labels = pytest.mark.parametrize("hard", [False, True])


@every_case
@both_labels
def test_generator_gradient(case: str, hard: bool) -> None:
    plain, method, state, _, batch = pair(case, hard)
    torch.manual_seed(1)
    method.climb(state)
    torch.manual_seed(1)
    plain.generator_step(torch.randn(batch, 8))
    close(gradients(state.generator), gradients(plain.generator))
    assert not gradients(state.students), "the students' weights have no gradient in the generator's step"


def test_wide_convolution_in_float32_and_with_a_bias() -> None:
    """Winograd's way is off by rounding only, whatever the size, and its folded form too."""
    torch.set_default_dtype(torch.float32)
    for height, width in ((4, 4), (8, 5), (1, 9), (17, 16)):
        layer = WideConv(WIDE, WIDE + 8).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        layer.bias = nn.Parameter(torch.randn(WIDE + 8))
        x = torch.randn(3, WIDE, height, width)
        direct = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
        assert (layer(x).double() - direct).abs().max() < 5e-5 * direct.abs().max()


def upsampled(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0), w, padding=1)


def convolved(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w, padding=1)


OURS: dict[str, tuple[Any, Any, int, int]] = {  # our way, the direct one, channels in and out
    "winograd": (Winograd.apply, convolved, WIDE, WIDE + 8),
    "winograd, of few channels": (Winograd.apply, convolved, winograd.SMALL, winograd.SMALL + 8),
    "doubled, wide": (Doubled.apply, upsampled, 64, 72),
    "doubled": (doubled, upsampled, 24, 12),
    "narrow": (narrow, convolved, 64, 1),
}


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (17, 16), (4, 4), (3, 4)])
@pytest.mark.parametrize("wider", [True, False])
def test_gradients_in_float32(
    way: str, size: tuple[int, int], wider: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By oneDNN's products, which float64 does not take, and by torch's: as those of direct convolution in
    float64.
    """
    if wider and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no such product")
    monkeypatch.setattr(winograd, "WIDER", wider)
    ours, direct, inputs, outputs = OURS[way]
    torch.manual_seed(0)
    x = torch.randn(5, inputs, *size, dtype=torch.float32).to(memory_format=torch.channels_last)
    w = torch.randn(outputs, inputs, 3, 3, dtype=torch.float32) / 3 / inputs**0.5
    back = torch.randn_like(direct(x, w))
    found = []
    for function, kind in ((ours, torch.float32), (direct, torch.float64)):
        players = [each.to(kind).requires_grad_() for each in (x, w)]
        y = function(*players)
        found.append([y.detach(), *torch.autograd.grad(y, players, back.to(kind))])
    for mine, exact in zip(*found, strict=True):
        assert mine.dtype == torch.float32
        assert (mine.double() - exact).abs().max() < 5e-5 * exact.abs().max()


def pooled_plainly(layer: PooledConv, x: Tensor) -> Tensor:
    return F.relu(F.max_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=layer.padding), 2))


@pytest.mark.parametrize("channels", [(1, 6), (3, 3), (2, pooled.FEW), (2, pooled.FEW + 1)])
@pytest.mark.parametrize("size", [(12, 12), (7, 10), (9, 5)])
def test_pooling_with_a_convolution(
    channels: tuple[int, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one after the other, gradients too; in one where no gradient is wanted and channels are few."""
    torch.manual_seed(0)
    layer = PooledConv(*channels, 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(4, channels[0], *size).to(memory_format=torch.channels_last).requires_grad_()
    back = torch.randn(4, channels[1], size[0] // 2, size[1] // 2).to(memory_format=torch.channels_last)
    players, both = [x, *layer.parameters()], (layer(x), pooled_plainly(layer, x))
    mine, theirs = ([y.detach(), *torch.autograd.grad(y, players, back)] for y in both)
    close(mine, theirs)
    with torch.no_grad():
        plainly = pooled_plainly(layer, x)
        strides: list[Any] = []

        def counted(*words: Any) -> Tensor:
            strides.append(words[3])
            return torch.conv2d(*words)

        monkeypatch.setattr(F, "conv2d", counted)
        close([layer(x)], [plainly])
    assert (strides == [2]) == (channels[1] <= pooled.FEW)


@pytest.mark.parametrize("channels", [1, 6, pooled.FEW + 1])
def test_pooling_of_few_channels(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's, by maxima; of equals that lie across a window one has the gradient all the same."""
    calls: list[int] = []
    halved = pooled.Halved.apply

    def counted(x: Tensor) -> Tensor:
        calls.append(x.shape[1])
        return halved(x)  # type: ignore[no-untyped-call,no-any-return]

    monkeypatch.setattr(pooled.Halved, "apply", counted)
    x = torch.randn(3, channels, 6, 10).to(memory_format=torch.channels_last).requires_grad_()
    back = torch.randn(3, channels, 3, 5)
    mine, theirs = pooled.pooled(x), F.relu(F.max_pool2d(x, 2))
    assert bool(calls) == (channels <= pooled.FEW)
    assert torch.equal(mine, theirs)
    assert torch.equal(*(torch.autograd.grad(y, x, back)[0] for y in (mine, theirs)))
    across = torch.tensor([[0.0, 1], [1, 0]]).expand(1, channels, 2, 2).clone().requires_grad_()
    [gradient] = torch.autograd.grad(pooled.pooled(across).sum(), across)
    assert torch.equal(gradient.sum((2, 3)), torch.ones(1, channels))


@pytest.mark.parametrize("size", [(4, 4), (3, 3), (8, 4), (2, 2), (5, 1)])
def test_images_of_one_tile_want_fewer_channels(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Tensor] = []

    def counted(x: Tensor, w: Tensor) -> Tensor:
        calls.append(x)
        return convolved(x, w)

    monkeypatch.setattr(Winograd, "apply", counted)
    WideConv(winograd.SMALL, winograd.SMALL)(torch.randn(2, winograd.SMALL, *size))
    WideConv(winograd.SMALL - 1, winograd.SMALL)(torch.randn(2, winograd.SMALL - 1, *size))
    assert len(calls) == (size in ((4, 4), (3, 3)))
    calls.clear()
    WideConv(winograd.WIDE, winograd.WIDE)(torch.randn(2, winograd.WIDE, *size))
    assert len(calls) == (min(size) >= winograd.SIDE), "of a smaller image a tile is mostly margin"


@pytest.mark.parametrize("size", [(5, 6), (4, 4), (3, 4)])
@pytest.mark.parametrize("tiles", [winograd.TILES, 4])
def test_wide_convolution_gradcheck(
    tiles: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many images are transformed together."""
    monkeypatch.setattr(winograd, "TILES", tiles)
    x = torch.randn(2, 3, *size, requires_grad=True)
    w = torch.randn(5, 3, 3, 3, requires_grad=True)
    assert torch.autograd.gradcheck(Winograd.apply, (x, w), fast_mode=tiles == 4)
    assert torch.autograd.gradcheck(Winograd.apply, (x.detach(), w), fast_mode=True)
    assert torch.autograd.gradcheck(Winograd.apply, (x, w.detach()), fast_mode=True)
    assert torch.allclose(Winograd.apply(x, w), F.conv2d(x, w, padding=1))  # type: ignore[no-untyped-call]


def test_doubling_and_narrow_convolution_gradcheck() -> None:
    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    w = torch.randn(4, 3, 3, 3, requires_grad=True)
    assert torch.autograd.gradcheck(Doubled.apply, (x, w))
    assert torch.autograd.gradcheck(doubled, (x, w))
    assert torch.autograd.gradcheck(narrow, (x, w[:1]))
    assert torch.autograd.gradcheck(narrow, (x.detach(), w[:1]))
    assert torch.autograd.gradcheck(narrow, (x, w[:1].detach()))


@every_case
@both_labels
def test_answers(case: str, hard: bool) -> None:
    plain, method, state, oracle, batch = pair(case, hard)
    torch.manual_seed(1)
    [(x, answer), (x2, _)] = method.ask(state, oracle, [batch, batch])
    torch.manual_seed(1)
    x_plain, answer_plain = plain.ask(torch.randn(batch, 8))
    if hard:
        assert torch.equal(answer.argmax(1), answer_plain)
    else:
        close([answer], [answer_plain])
    close([x, x2], [x_plain, plain.ask(torch.randn(batch, 8))[0]])


@every_case
@both_labels
def test_student_gradients(case: str, hard: bool) -> None:
    plain, method, state, oracle, batch = pair(case, hard)
    torch.manual_seed(1)
    x, answer = plain.ask(torch.randn(batch, 8))
    rows = nn.functional.one_hot(answer, 5).double() if hard else answer
    method.imitate(state, oracle.spec, x, rows, {})
    torch.manual_seed(1)
    plain.student_step(torch.randn(batch, 8))
    for mine, theirs in zip(state.students.members, plain.students, strict=True):
        close(gradients(mine), gradients(theirs))
