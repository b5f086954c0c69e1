"""Real processes, really stopped: what they end with is bit for bit what they would have ended with."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

QUERIES = 6000
OPTIONS = [
    "--batch",
    "16",
    "--width",
    "8",
    "--noise-size",
    "16",
    "--average",
    "0.9",
    "--average-every",
    "3",
    "--points",
    "6",
    "--threads",
    "1",
]


def extract(target: Path, out: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "dualstudent", "extract", "dual-student", "--target", str(target)]
    return [*command, "--queries", str(QUERIES), "--out", str(out), *OPTIONS, *more]


def resume(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "dualstudent", "resume", str(out), *more]


def start(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def asked(out: Path) -> int:
    try:
        return int((out / "attack.account").read_text().split()[-1])
    except (OSError, IndexError, ValueError):
        return 0


def interrupt(process: "subprocess.Popen[str]", out: Path, at: int, number: int) -> str:
    """Send a signal once so many images are charged; return what the process said."""
    deadline = time.monotonic() + 120
    while asked(out) < at and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it could be stopped"
    os.kill(process.pid, number)
    return process.communicate(timeout=60)[1]


def outcome(out: Path) -> dict[str, Any]:
    """Everything that must be identical."""
    snapshot = torch.load(out / "snapshot.pt", weights_only=True)
    result = json.loads((out / "result.json").read_text())
    for apart in ("timing", "bill"):
        result.pop(apart)
    flat: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(f"{name}/{key}", part)
        else:
            flat[name] = value.tolist() if isinstance(value, torch.Tensor) else value

    walk("", snapshot["state"])
    return {
        "state": flat,
        "result": result,
        "metrics": (out / "metrics.jsonl").read_bytes(),
        "student": (out / "student" / "model.safetensors").read_bytes(),
        "figures": {p.name: p.read_bytes() for p in (out / "figures").glob("asked-*.png")},
    }


@pytest.fixture(scope="module")
def quiet(digits_target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run's outcome."""
    out = tmp_path_factory.mktemp("runs") / "quiet"
    subprocess.run(extract(digits_target, out), check=True, capture_output=True)
    assert json.loads((out / "result.json").read_text())["bill"]["asked_again"] == 0
    return outcome(out)


def test_killed_at_three_random_points(digits_target: Path, quiet: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    points = sorted(random.SystemRandom().sample(range(80, QUERIES - 800), 3))
    print("killed at", points)
    command = extract(digits_target, out, "--snapshot-every", "0.3")
    for point in points:
        interrupt(start(command), out, point, signal.SIGKILL)
        command = resume(out)
    subprocess.run(command, check=True, capture_output=True)
    assert outcome(out) == quiet
    bill = json.loads((out / "result.json").read_text())["bill"]
    assert bill["asked"] == QUERIES + bill["asked_again"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_on_request(number: int, digits_target: Path, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM finish the step and save: nothing is asked again."""
    out = tmp_path / "run"
    process = start(extract(digits_target, out))
    words = interrupt(process, out, random.SystemRandom().randrange(80, QUERIES - 800), number)
    assert process.returncode == 130
    assert f"dualstudent resume {out}" in words
    assert "Traceback" not in words
    partial = json.loads((out / "result.json").read_text())
    assert not partial["complete"]
    assert 0 < partial["spent"] < QUERIES
    subprocess.run(resume(out), check=True, capture_output=True)
    assert outcome(out) == quiet
    assert json.loads((out / "result.json").read_text())["bill"]["asked_again"] == 0


def test_truncated_snapshot_falls_back(digits_target: Path, quiet: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupt(start(extract(digits_target, out, "--snapshot-every", "0")), out, 3000, signal.SIGKILL)
    whole = (out / "snapshot.pt").read_bytes()
    (out / "snapshot.pt").write_bytes(whole[: len(whole) // 2])
    process = subprocess.run(resume(out), check=True, capture_output=True, text=True)
    assert "snapshot.pt is truncated" in process.stderr
    assert "previous" in process.stderr
    assert outcome(out) == quiet


def test_extended_to_a_larger_budget(digits_target: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "run", QUERIES + 500
    subprocess.run(extract(digits_target, out), check=True, capture_output=True)
    subprocess.run(resume(out, "--queries", str(more)), check=True, capture_output=True)
    result = json.loads((out / "result.json").read_text())
    assert (result["budget"], result["spent"], result["unique"]) == (more, more, more)
    assert result["extended_from"] == [QUERIES]
    assert any(flag["name"] == "extended" and not flag["ok"] for flag in result["flags"])
    interrupt(start(resume(out, "--queries", str(2 * QUERIES))), out, more + 200, signal.SIGKILL)
    subprocess.run(resume(out), check=True, capture_output=True)  # goes on with the extension
    result = json.loads((out / "result.json").read_text())
    assert (result["budget"], result["spent"], result["complete"]) == (2 * QUERIES, 2 * QUERIES, True)
    refused = subprocess.run(resume(out, "--queries", "100"), capture_output=True, text=True)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
