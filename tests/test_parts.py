"""What each of the engine's ways pays: its program runs, and the page shows what it measured."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in ("", "parts"):
        monkeypatch.syspath_prepend(ROOT / "benchmarks" / folder)
    return importlib.import_module("times")


def test_the_page_shows_the_figures_that_were_measured(measuring: ModuleType) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    figures = json.loads((ROOT / "benchmarks" / "parts" / "results.json").read_text())
    assert measuring.page(text, figures) == text
    figures["parts"][0]["ratio"]["median"] += 1
    assert measuring.page(text, figures) != text


@pytest.mark.slow
def test_every_part_is_timed(measuring: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROUNDS", 1), ("FEW", 1), ("LEAST_S", 0.0)):
        monkeypatch.setattr(measuring, name, value)
    torch.set_default_dtype(torch.float32)
    found = [measuring.compared(part) for part in measuring.parts()]
    assert len({(row["part"], row["on"]) for row in found}) == len(found) > 15
    assert all(row["ratio"]["median"] > 0.1 for row in found)
    [figures] = [measuring.side_by_side("lenet5", (1, 12, 12), 8, "fp32")["ms"]]
    assert all(figures[name]["median"] > 0 for name in ("one", "all", "side_by_side"))
