"""The README's Python example and commands are real."""

import json
import re
from pathlib import Path

import pytest

import dualstudent as ds
from dualstudent.cli import COMMANDS

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_example_runs(digits_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "target").symlink_to(digits_target)
    text = code[1]
    assert "ds.Frugal()" in text
    assert "queries=5_000" in text
    names: dict[str, object] = {}
    exec(text.replace("5_000", "1_500").replace("ds.Frugal()", "ds.Frugal(compute_least=600)"), names)
    run = names["run"]
    assert isinstance(run, ds.Run)
    assert run.result["spent"] == 1500
    assert run.result["complete"]


def test_every_command_of_the_readme_exists() -> None:
    used = set(re.findall(r"^dualstudent (\w+)", README, re.MULTILINE))
    assert used
    assert used <= COMMANDS.keys()


def test_links_of_the_readme_exist() -> None:
    root = Path(__file__).parent.parent
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (root / link).exists(), link


ROOT = Path(__file__).parent.parent


def test_figures_of_the_readme_are_those_measured() -> None:
    """Each figure of the README's table is in results.json, rounded."""
    results = json.loads((ROOT / "benchmarks" / "demo" / "results.json").read_text())
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) – ([\d.]+) \|", README, re.MULTILINE)
    assert len(rows) == 3
    kinds = [results[kind]["agreement"] for kind in ("soft", "hard", "paper")]
    for (_, median, least, most), spread in zip(rows, kinds, strict=True):
        values = (spread["median"], min(spread["values"]), max(spread["values"]))
        assert (median, least, most) == tuple(f"{100 * value:.1f}" for value in values)
