"""Image classifiers by name: targets and students, for any shape they can take. Logits out.

Convolutions in front of BatchNorm carry no bias: it would have no true gradient, only rounding noise.
State-dict names are part of the saved format: do not rename attributes.
"""

import contextlib
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dualstudent.errors import UserError, unknown
from dualstudent.networks.pooled import PooledConv, pooled
from dualstudent.networks.winograd import WideConv
from dualstudent.plugins import call_factory

Shape = tuple[int, int, int]


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    if stride == 1 and kernel == 3:
        return WideConv(inputs, outputs)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class DigitsCNN(nn.Module):
    """3×3 convolutions 32, 32, pool, 64, pool, linear, with BatchNorm; for 8×8 digits and the like."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        c, h, w = shape
        _at_least(shape, 4, "digits-cnn")
        self.conv1, self.bn1 = _conv(c, 32), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = _conv(32, 32), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = _conv(32, 64), nn.BatchNorm2d(64)
        self.head = nn.Linear(64 * (h // 4) * (w // 4), classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = pooled(self.bn2(self.conv2(x)))
        x = pooled(self.bn3(self.conv3(x)))
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling; `scale` multiplies its widths."""

    def __init__(self, shape: Shape, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        c, h, w = shape
        _at_least(shape, 12, "lenet5")
        widths = [int(scale * width) for width in (6, 16, 120, 84)]
        self.conv1 = PooledConv(c, widths[0], 5)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5)
        self.fc1 = nn.Linear(widths[1] * ((h // 2 - 4) // 2) * ((w // 2 - 4) // 2), widths[2])
        self.fc2 = nn.Linear(widths[2], widths[3])
        self.head = nn.Linear(widths[3], classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = pooled(self.conv2(self.conv1(x)))
        x = F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))
        return self.head(x)  # type: ignore[no-any-return]


def _fusible(conv: nn.Conv2d, x: Tensor) -> bool:
    """Return whether cuDNN may take bias, shortcut and ReLU along: a folded network that is asked."""
    asked = x.is_cuda and conv.bias is not None and not torch.is_grad_enabled() and x.dtype == torch.float32
    plain = torch.is_autocast_enabled("cuda") or torch.are_deterministic_algorithms_enabled()
    return asked and not plain and not torch.compiler.is_compiling()


def _fused(conv: nn.Conv2d, x: Float[Tensor, "b c h w"], more: Tensor | None = None) -> Tensor:
    """Return relu(conv(x) + more) in one kernel."""
    stride, dilation, padding = conv.stride, conv.dilation, [side // 2 for side in conv.kernel_size]
    if more is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, stride, padding, dilation, 1)
    return torch.cudnn_convolution_add_relu(
        x, conv.weight, more, 1.0, conv.bias, stride, padding, dilation, 1
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016); the shortcut is 1×1 where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, stride, kernel=1), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d u v"]:
        if _fusible(self.conv1, x):
            return _fused(self.conv2, _fused(self.conv1, x), self.shortcut(x))
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(out.add_(self.shortcut(x)), inplace=True)


class ResNet(nn.Module):
    """ResNet with the CIFAR stem (3×3, no max-pooling), global mean and linear head (He et al. 2016)."""

    def __init__(self, shape: Shape, classes: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        _at_least(shape, 4, "a ResNet")
        self.conv1, self.bn1 = _conv(shape[0], widths[0]), nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        inputs = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(depth):
                layers.append(BasicBlock(inputs, width, 2 if stage > 0 and block == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        if _fusible(self.conv1, x):
            x = _fused(self.conv1, x.contiguous(memory_format=torch.channels_last))
        else:
            x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.blocks(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def _at_least(shape: Shape, side: int, name: str) -> None:
    if min(shape[1:]) < side:
        raise UserError(f"{name} needs images of at least {side}×{side}, not {shape[1]}×{shape[2]}")


LIGHT = 6_000_000  # FLOPs of a student's pass: with more, fewer batches are learnt
SHARED = 96_000_000  # FLOPs of a student's pass from which cores are as well used within it as beside another
LEAST = 1 / 16  # of their batches that a large student learns all the same
_WIDE = (64, 128, 256, 512)
ARCHITECTURES: dict[str, Callable[[Shape, int], nn.Module]] = {
    "digits-cnn": DigitsCNN,
    "lenet5": LeNet5,
    "lenet5-half": lambda shape, classes: LeNet5(shape, classes, scale=0.5),
    "resnet8": lambda shape, classes: ResNet(shape, classes, (16, 32, 64), (1, 1, 1)),
    "resnet18": lambda shape, classes: ResNet(shape, classes, _WIDE, (2, 2, 2, 2)),
    "resnet34": lambda shape, classes: ResNet(shape, classes, _WIDE, (3, 4, 6, 3)),
}


def classifier(name: str, shape: Shape, classes: int) -> nn.Module:
    """Return an untrained classifier, logits (b, classes) from images (b, *shape).

    `name` is one of ARCHITECTURES, "auto" (the smallest that fits the shape) or
    "torch:package.module:factory", called as factory(shape, classes). Raises UserError.
    """
    if name == "auto":
        name = smallest(shape)
    if name.startswith("torch:"):
        module = call_factory(name.removeprefix("torch:"), shape, classes)
        if not isinstance(module, nn.Module):
            raise UserError(f"student '{name}' made a {type(module).__name__}, not a torch.nn.Module")
        _try_out(module, name, shape, classes)
        return module
    if name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name](shape, classes)


def _try_out(module: nn.Module, name: str, shape: Shape, classes: int) -> None:
    """Raise UserError where a user's network does not turn images of a shape into logits (b, classes)."""
    training = module.training
    try:
        with torch.no_grad():
            made = module.eval()(torch.zeros(2, *shape))
    except Exception as error:  # whatever a user's network raises is one line for the user
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"student '{name}' fails on images {shape}: {reason}") from error
    finally:
        module.train(training)
    if not isinstance(made, Tensor) or tuple(made.shape) != (2, classes):
        what = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UserError(f"student '{name}' gives {what} for 2 images, not logits (2, {classes})")


def smallest(shape: Shape) -> str:
    """Return the architecture with the fewest weights that takes images of a shape. Raises UserError."""
    sizes: dict[str, int] = {}
    for name, build in ARCHITECTURES.items():
        with contextlib.suppress(UserError), torch.device("meta"):
            sizes[name] = sum(weight.numel() for weight in build(shape, 2).parameters())
    if not sizes:
        raise UserError(f"no architecture takes images of {shape[1]}×{shape[2]}: the least is 4×4")
    return min(sizes, key=sizes.__getitem__)


def suited(shape: Shape) -> str:
    """Return an architecture that can do justice to images of a shape, by their size and colours alone.

    Small grey images: lenet5; below 12 pixels the smallest that fits; resnet8 else. Raises UserError.
    """
    if min(shape[1:]) < 12:
        return smallest(shape)
    return "lenet5" if shape[0] == 1 and max(shape[1:]) <= 32 else "resnet8"


def work(name: str, shape: Shape, classes: int = 10) -> int:
    """Return the FLOPs of one image's forward pass through a classifier by name; no image is computed."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    with torch.device("meta"):
        network = classifier(name, shape, classes).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, *shape))
    return int(counter.get_total_flops())


@lru_cache
def shares(arch: str, shape: Shape) -> bool:
    """Return whether students of an architecture of ours gain by learning side by side: none that is wide."""
    return ":" not in arch and work(arch, shape) < SHARED


@lru_cache
def lighter(arch: str, shape: Shape) -> float:
    """Return the part of its batches that a network learns: of a larger one the same FLOPs, but not less
    than LEAST of them. Networks of others are not measured.
    """
    return 1.0 if ":" in arch else max(LEAST, min(1.0, LIGHT / work(arch, shape)))


def folded(network: nn.Module) -> nn.Module:
    """Take the BatchNorms of one of our classifiers into the convolutions before them, in place.

    For a network that stays in eval mode; what it computes stays the same. Returns it.
    """
    for parent in list(network.modules()):
        before = ""
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(getattr(parent, before), child))
                setattr(parent, name, nn.Identity())
            before = name
    return network
