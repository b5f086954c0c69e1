"""Shapes and types are checked while the tests run; small networks use one thread."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

if "DUALSTUDENT_NO_HOOK" not in os.environ:  # a traced graph has no place for checks
    install_import_hook("dualstudent", "beartype.beartype")  # before the first import of the package

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

import dualstudent as ds
from dualstudent import threads
from dualstudent.sweep import work as working
from sweep_fixture import SPEC, Executor, Write

LONG = {f"test_{name}.py" for name in ("contract", "kill", "ranks", "whole_graph", "again", "side_by_side")}

settings.register_profile("busy", deadline=None)  # a test that is slow beside others is not wrong
settings.load_profile("busy")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    threads.side_by_side(1)
    yield
    torch.set_num_threads(before)


class Linear:
    """A target quick to ask: a fixed random linear classifier that counts the images it sees."""

    def __init__(self, spec: ds.Spec, width: int | None = None) -> None:
        self.spec, self.seen = spec, 0
        self.calls: list[int] = []
        generator = torch.Generator().manual_seed(7)
        pixels = spec.shape[0] * spec.shape[1] * spec.shape[2]
        self.weight = torch.randn(pixels, width or spec.classes or 4, generator=generator)

    def __call__(self, x: Tensor, /) -> Tensor:
        assert not x.requires_grad
        self.seen += len(x)
        self.calls.append(len(x))
        p = (x.flatten(1) @ self.weight).softmax(1)
        if self.spec.access == ds.Access.LABEL:
            return torch.nn.functional.one_hot(p.argmax(1), p.shape[1]).float()
        return p


@pytest.fixture
def linear() -> Callable[..., Linear]:
    def make(
        shape: tuple[int, int, int] = (1, 8, 8),
        classes: int | None = 4,
        access: ds.Access = ds.Access.PROBS,
        **more: object,
    ) -> Linear:
        return Linear(ds.Spec(shape, classes, access=access, **more))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def digits_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target folder, trained for two epochs only: enough to be asked."""
    from dualstudent.targets import Training

    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("targets") / "digits"
    ds.train_target("digits", "digits-cnn", out, training=Training(epochs=2))
    return out


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that processes side by side end together.

    Note in the JUnit file which tests need the image benchmarks: CI counts those that ran.
    """
    items.sort(key=lambda item: item.path.name not in LONG)
    for item in items:
        if item.get_closest_marker("data"):
            item.user_properties.append(("data", "1"))


@pytest.fixture
def at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Executor:
    executor = Executor(tmp_path)

    def made(logs: Path, slurm: object) -> Executor:
        logs.mkdir(parents=True, exist_ok=True)
        return executor

    monkeypatch.setattr(working, "_executor", made)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return executor


@pytest.fixture
def write(tmp_path: Path, digits_target: Path) -> Write:
    """Return what writes a sweep's file, some of its text replaced."""

    def make(text: str = SPEC, **changes: str) -> Path:
        text = text.format(target=digits_target)
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "spec.toml"
        path.write_text(text)
        return path

    return make
