"""Train a target of one's own to practise on: plain supervised learning, final model."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualstudent import parallel
from dualstudent.data import DATA_SETS, Images, load_data
from dualstudent.errors import UserError
from dualstudent.evaluation.fidelity import evaluating, inputs
from dualstudent.networks import classifier
from dualstudent.numerics import Numerics, Precision, full
from dualstudent.programs import Graphs, Programs, call, known
from dualstudent.spec import Spec
from dualstudent.targets import folder as files


@dataclass(frozen=True)
class Training:
    """How a target is trained: SGD with Nesterov momentum, one warm-up epoch, cosine to zero.

    Raises UserError on a value that is out of range.
    """

    epochs: int | None = None  # passes over the train split; default by architecture
    batch: int = 128  # images of a batch
    rate: float | None = None  # peak learning rate; default by architecture
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int | None = None  # random shifts by up to this many pixels; default 4 for resnet18/34
    flip: bool | None = None  # random mirror images; default for resnet18/34 on cifar10/100
    cutout: int = 0  # side in pixels of a square at a random place that gets the mean colour
    precision: Precision = "auto"  # auto: tf32 on a GPU, fp32 on a CPU; bf16 halves the time on a GPU

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch": 2}
        least |= dict.fromkeys(("rate", "momentum", "weight_decay", "shift", "cutout"), 0)
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and not value <= given < math.inf:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {given}: it must be at least {value:g} and finite")
        if self.momentum >= 1:
            raise UserError(f"--momentum {self.momentum}: it must be below 1")
        if self.rate == 0:
            raise UserError("--rate 0: the network would learn nothing")


_DEFAULTS = {"digits-cnn": (30, 0.05), "lenet5": (10, 0.05), "lenet5-half": (10, 0.05), "resnet8": (10, 0.1)}
_LARGE = (40, 0.1)


def train_target(
    data: str,
    arch: str,
    out: Path,
    *,
    seed: int = 0,
    data_dir: Path | None = None,
    training: Training | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> dict[str, Any]:
    """Train a classifier on a data set's train split and write it to `out`; returns target.json.

    The accuracy on the test split is that of the final weights. Raises UserError.
    """
    training = training or Training()
    train, test = (load_data(data, split, folder=data_dir).to(device) for split in ("train", "test"))
    if train.digest() == test.digest():
        raise UserError(
            f"{data} has the same images to train and to test: put class folders into"
            f" {data}/train and {data}/test, so that the target is judged on images it has not seen"
        )
    spec = Spec(train.shape, len(train.classes))
    if training.cutout >= min(spec.shape[1:]):
        raise UserError(
            f"--cutout {training.cutout}: {data} has images of {spec.shape[1]}×{spec.shape[2]} pixels"
        )
    parallel.seed_step(seed, 0, 0)
    with torch.device(device):
        network = classifier(arch, spec.shape, len(train.classes))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    vacant(out, overwrite)
    mean, std = _normalisation(train)
    epochs = _fit(network, train, (mean, std), arch, training, seed, progress)
    if not all(torch.isfinite(weight).all() for weight in network.parameters()):
        raise UserError("the target's weights are not finite: lower --rate")
    accuracy = _accuracy(network, test, (mean, std))
    shutil.rmtree(out, ignore_errors=True)  # an older target is kept until the new one is trained
    out.mkdir(parents=True)
    return files.save(
        out,
        network,
        {
            "arch": arch,
            "data": train.name if train.name in DATA_SETS else str(Path(data).absolute()),
            "seed": seed,
            "epochs": epochs,
            "test_accuracy": accuracy,
            "test_images": len(test),
            "classes": list(train.classes),
            "normalise": {"mean": list(mean), "std": list(std)},
            "spec": spec.to_json(),
        },
    )


def vacant(out: Path, overwrite: bool) -> None:
    """Make sure that a target can be written. Raises UserError where something is in the way."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / "target.json").is_file():
            raise UserError(f"{out} exists and holds something else: choose another --out")
        if not overwrite:
            raise UserError(f"{out} holds a target: choose another --out, or say --overwrite")
    out.mkdir(parents=True, exist_ok=True)


def _normalisation(train: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return per-channel mean and deviation: the usual ones of a known data set, else measured."""
    if train.name in DATA_SETS:
        return DATA_SETS[train.name].mean, DATA_SETS[train.name].std
    pixels = train.pixels(0, 10_000)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())


def _fit(
    network: nn.Module,
    train: Images,
    normalise: tuple[tuple[float, ...], tuple[float, ...]],
    arch: str,
    training: Training,
    seed: int,
    progress: Callable[[int, int, str], None],
) -> int:
    epochs, peak = _DEFAULTS.get(arch, _LARGE)
    epochs, peak = training.epochs or epochs, training.rate or peak
    large = arch not in _DEFAULTS
    shift = training.shift if training.shift is not None else 4 * large
    flip = training.flip if training.flip is not None else large and train.name.startswith("cifar")
    batch = min(training.batch, max(2, len(train) // 14))
    each = len(train) // batch
    device = train.images.device
    numerics = Numerics(training.precision).on(device)
    numerics.apply(device)
    compiled = numerics.compiles(epochs * each)
    captured = compiled and device.type == "cuda" and known([network])
    optimiser = torch.optim.SGD(
        network.parameters(),
        peak,
        training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
        fused=captured or None,
    )
    programs = Programs(compiled, Graphs(device) if captured else None)
    if compiled:
        network.compile()

    def program(x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        with numerics.casting(device):
            logits = network(x)
        optimiser.zero_grad()
        F.cross_entropy(full(logits), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return ()

    mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in normalise)
    rate, step = torch.tensor(peak, device=device), 0  # a captured program finds it there
    for epoch in range(epochs):
        parallel.seed_step(seed, epoch + 1, 0)
        order = torch.randperm(len(train)).to(device)
        for rows in order[: each * batch].view(each, batch):
            now = peak * _cosine(step, each, epochs * each)
            for group in optimiser.param_groups:
                group["lr"] = rate.fill_(now) if captured else now
            part = train[rows]
            x = _cut_out((_augmented(part.pixels(), shift, flip) - mean) / std, training.cutout)
            with programs.running(True):
                call("train", program, x, part.labels)
            step += 1
        progress(step, epochs * each, f"epoch {epoch + 1} of {epochs}")
    return epochs


def _cosine(step: int, warm: int, total: int) -> float:
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _augmented(x: Float[Tensor, "b c h w"], shift: int, flip: bool) -> Float[Tensor, "b c h w"]:
    """Return images shifted at random (zeros come in) and mirrored at random."""
    b, _, h, w = x.shape
    if flip:
        x = torch.where((torch.rand(b, 1, 1, 1) < 0.5).to(x.device), x.flip(3), x)
    if shift:
        padded = F.pad(x, (shift,) * 4)
        top, left = torch.randint(0, 2 * shift + 1, (2, b, 1, 1)).to(x.device)
        rows = (top + torch.arange(h, device=x.device).view(1, h, 1)).unsqueeze(1)
        columns = (left + torch.arange(w, device=x.device)).unsqueeze(1)
        image = torch.arange(b, device=x.device).view(b, 1, 1, 1)
        channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
        x = padded[image, channel, rows, columns]
    return x


@torch.inference_mode()
def _accuracy(
    network: nn.Module, test: Images, normalise: tuple[tuple[float, ...], tuple[float, ...]]
) -> float:
    spec = Spec(test.shape, len(test.classes), mean=normalise[0], std=normalise[1])
    with evaluating(network):  # .forward: what is compiled is for other batches than these
        guess = torch.cat([network.forward(x).argmax(1) for x in inputs(test, spec)])
    return (guess == test.labels).double().mean().item()


def _cut_out(x: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c h w"]:
    """Return images with a square at a random place, in part outside, set to zero (DeVries & Taylor 2017)."""
    if not side:
        return x
    inside = torch.ones(len(x), 1, 1, 1, dtype=torch.bool, device=x.device)
    for axis, length in ((2, x.shape[2]), (3, x.shape[3])):
        first = torch.randint(-(side // 2), length - side // 2, (len(x), 1, 1, 1)).to(x.device)
        place = torch.arange(length, device=x.device).view([-1 if i == axis else 1 for i in range(4)])
        inside = inside & (place >= first) & (place < first + side)
    return x.masked_fill(inside, 0.0)
