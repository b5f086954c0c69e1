"""The precision of a run holds for all that it asks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent import methods
from dualstudent.data import Images
from dualstudent.numerics import Numerics, warn_of_bf16


def pictures(count: int) -> Images:
    images = torch.full((count, 1, 8, 8), count, dtype=torch.uint8)
    return Images("own", "test", images, torch.arange(count), tuple("abcd"))


def test_the_owner_asks_as_exactly_as_the_attacker(
    linear: Callable[..., Linear], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's precision holds before the first answer, to whomever it is given."""
    said: list[str] = []
    answer = Linear.__call__

    def spied(target: Linear, x: Tensor) -> Tensor:
        said.append("asked")
        return answer(target, x)

    monkeypatch.setattr(Linear, "__call__", spied)
    monkeypatch.setattr(Numerics, "apply", lambda self, device: said.append(self.precision))
    exact = {"device": "cpu", "numerics": Numerics("bf16")}
    data, target = pictures(4), linear()
    run = ds.extract(methods.Procedural(batch=8), target, queries=8, out=tmp_path / "run", data=data, **exact)  # type: ignore[arg-type]
    assert said[:2] == ["bf16", "asked"]
    said.clear()
    ds.evaluate(run.path, pictures(3), target)
    assert said == ["bf16", "asked"]


@pytest.mark.parametrize("quick", [True, False])
def test_a_processor_that_only_emulates_bf16_is_told_of_once(
    quick: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: quick)
    warn_of_bf16.cache_clear()
    for precision in ("fp32", "bf16", "bf16"):
        Numerics(precision).on("cpu").apply("cpu")
    said = [record.getMessage() for record in caplog.records]
    assert said == (
        [] if quick else ["this processor has no instructions for bf16: --precision fp32 is quicker"]
    )
    warn_of_bf16.cache_clear()
