"""Targets unlike those of the papers, with tiny budgets: spent to the last image, figures finite, a clone."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dualstudent as ds
from dualstudent.data import Images
from dualstudent.methods import Frugal, Method
from dualstudent.spec import Labels
from dualstudent.targets import TargetOptions, open_target

BUDGET = 60
METHODS: dict[str, Method[Any]] = {
    "frugal": Frugal(batch=20, candidates=4, compute=0.0, compute_least=20, learnt=16, max_classes=12),
    "dual-student": ds.DualStudent(batch=10, width=4, noise_size=8, student_steps=2, max_classes=12),
}


def mlp(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 2) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.ReLU(), nn.Linear(16, classes)
    ).eval()


@cache
def trees() -> Any:
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    images, labels = load_digits(return_X_y=True)
    return RandomForestClassifier(8, max_depth=6, random_state=0).fit(images / 16, labels)


def forest() -> Any:
    return lambda x: trees().predict_proba(np.asarray(x).reshape(len(x), -1))


def forest_of_labels() -> Any:
    return lambda x: trees().predict(np.asarray(x).reshape(len(x), -1))


def vgg() -> nn.Module:
    """Blocks of convolutions behind the usual means, for pixels in [0, 255]."""

    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 120.0) / 60.0

    torch.manual_seed(4)
    layers: list[nn.Module] = [Centred()]
    for into, out in ((3, 8), (8, 16)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16, 32), nn.ReLU(), nn.Linear(32, 7)).eval()


def signed() -> nn.Module:
    return mlp((1, 8, 8), 4)


def wide() -> nn.Module:
    return mlp((3, 9, 14), 4)


def five_channels() -> nn.Module:
    return mlp((5, 8, 8), 4)


def saturated() -> nn.Module:
    """Always as sure as floats can be, of one class nearly always."""
    network = mlp((1, 8, 8), 3)
    last: Any = network[-1]  # type: ignore[index]
    with torch.no_grad():
        last.weight.mul_(1e4)
        last.bias.copy_(torch.tensor([1e5, 0.0, 0.0]))
    return network


HERE = "test_odd_targets"
TARGETS: dict[str, tuple[str, dict[str, Any], Labels]] = {
    "MLP of 2 classes": (f"torch:{HERE}:mlp", {"shape": (1, 8, 8), "classes": 2}, "soft"),
    "forest": (f"python:{HERE}:forest", {"shape": (1, 8, 8), "classes": 10}, "soft"),
    "forest of labels": (
        f"python:{HERE}:forest_of_labels",
        {"shape": (1, 8, 8), "classes": 10, "output": "labels"},
        "hard",
    ),
    "VGG in 0 … 255": (
        f"torch:{HERE}:vgg",
        {"shape": (3, 16, 16), "classes": 7, "bounds": (0.0, 255.0), "levels": 256},
        "soft",
    ),
    "inputs in −1 … 1": (
        f"torch:{HERE}:signed",
        {"shape": (1, 8, 8), "classes": 4, "bounds": (-1.0, 1.0)},
        "soft",
    ),
    "unequal sides": (f"torch:{HERE}:wide", {"shape": (3, 9, 14), "classes": 4}, "soft"),
    "5 channels": (f"torch:{HERE}:five_channels", {"shape": (5, 8, 8), "classes": 4}, "hard"),
    "unknown classes": (
        f"python:{HERE}:forest_of_labels",
        {"shape": (1, 8, 8), "classes": "unknown", "output": "labels"},
        "hard",
    ),
    "saturated": (f"torch:{HERE}:saturated", {"shape": (1, 8, 8), "classes": 3}, "soft"),
}


def made(shape: tuple[int, int, int], classes: int) -> Images:
    """Test images of noise, for want of others of such shapes."""
    dice = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (24, *shape), dtype=torch.uint8, generator=dice)
    names = tuple(f"class {k}" for k in range(classes))
    return Images("noise", "test", pixels, torch.arange(24) % classes, names)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", METHODS)
def test_an_odd_target_is_extracted(method: str, target: str, tmp_path: Path) -> None:
    reference, options, labels = TARGETS[target]
    output = options.get("output", "logits" if reference.startswith("torch") else "probabilities")
    opened = open_target(reference, TargetOptions(**options | {"output": output}))
    classes = 10 if options["classes"] == "unknown" else options["classes"]
    data = made(options["shape"], classes)
    out = tmp_path / "run"
    run = ds.extract(
        METHODS[method], opened, queries=BUDGET, labels=labels, out=out, data=data, points=2, device="cpu"
    )
    result = run.result
    assert (result["spent"], result["bill"]["asked"], result["bill"]["audit"]) == (BUDGET, BUDGET, 24)
    assert result["complete"]
    for name in ("agreement", "accuracy", "target_accuracy"):
        assert 0 <= result[name] <= 1
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    figures = [value for line in lines for value in line.values() if isinstance(value, float)]
    assert figures
    assert all(map(math.isfinite, figures))
    low, high = options.get("bounds", (0.0, 1.0))
    x = low + (high - low) * data.pixels()
    with torch.inference_mode():
        logits = run.clone(x)
    known = run.clone.ids
    assert logits.shape == (24, classes if known is None else len(known))
    assert torch.isfinite(logits).all()
    assert torch.allclose(logits.softmax(1).sum(1), torch.ones(24), atol=1e-5)
    agreed = (logits.argmax(1) if known is None else known[logits.argmax(1)]) == opened.target(x).argmax(1)
    assert result["agreement"] == pytest.approx(agreed.float().mean().item(), abs=1.5 / 24)
