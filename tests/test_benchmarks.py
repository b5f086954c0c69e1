"""The benchmarks' programs run: the paper's path at toy size, the yardstick on its smallest case."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def call(script: str, *words: str) -> "subprocess.CompletedProcess[str]":
    paths = os.pathsep.join(str(ROOT / part) for part in ("benchmarks", "src"))
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *words],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_paper_run_stops_goes_on_and_reports(tmp_path: Path) -> None:
    words = ["--dry", "--out", str(tmp_path)]
    first = call("paper/run.py", *words, "--minutes", "0.001")
    assert first.returncode == 3, first.stderr
    assert "to be continued" in first.stdout
    second = call("paper/run.py", *words)
    assert second.returncode == 0, second.stderr
    [cell] = json.loads((tmp_path / "dry" / "results.json").read_text())["cells"].values()
    assert cell["spent"] == cell["budget"] == 1500
    assert cell["timing"]["sessions"] == 2
    assert 0 < cell["agreement"] <= 1
    assert call("paper/run.py", *words).stdout.splitlines()[-1] == "done", "a third call has nothing to do"


def test_paper_speed_is_measured_beside_the_plain_loop(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    done = call(
        "paper/speed.py", "--dry", "--steps", "2", "--variants", "fp32-eager", "plain", "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    ours, plain = json.loads(out.read_text())["variants"].values()
    assert 0 < ours["ms"] < plain["ms"] * 3
    assert set(ours["parts_ms"]) == {"climb", "ask", "imitate"}
    assert all(ms > 0 for ms in ours["parts_ms"].values())


@pytest.mark.slow
def test_yardstick_measures_both_sides(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = call("engine/compare.py", "--quick", "--cases", "c", "--out", str(out))
    assert done.returncode == 0, done.stderr
    case = json.loads(out.read_text())["cases"]["c"]
    assert case["ratio"]["min"] == case["ratio"]["median"] == case["ratio"]["max"] > 1
    assert 0 < case["share_of_floor"]["median"] < 1
    assert "queries/CPU-s" in done.stdout
