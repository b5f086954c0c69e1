"""Where a sweep's jobs run: each on a GPU of its own while there are enough, under Slurm, or nowhere."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dualstudent import sweep as sweeps
from dualstudent.cli import main
from dualstudent.errors import UserError
from dualstudent.sweep import gpus
from dualstudent.sweep import work as working
from sweep_fixture import Executor, Write

TWO = """
seeds = [0, 1]
budgets = [24]
points = 1
[[targets]]
name = "spy"
target = "python:sweep_spy:make"
data = "digits"
options = { shape = [1, 8, 8], classes = 10 }
[[methods]]
method = "procedural"
"""
SPY = """
import os


def make():
    raise RuntimeError("sees " + os.environ["CUDA_VISIBLE_DEVICES"])
"""


@pytest.mark.parametrize(
    ("named", "count", "seen"),
    [
        (None, 3, ["0", "1", "2"]),
        ("2,5", 2, ["2", "5"]),
        ("GPU-a, GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("1,-1,0", 1, ["1"]),
        ("", 0, []),
        (None, 0, []),
    ],
)
def test_the_gpus_that_jobs_may_use(
    named: str | None, count: int, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    if named is not None:
        monkeypatch.setenv(gpus.VISIBLE, named)
    assert gpus.visible() == seen


def test_a_job_gets_the_gpu_with_the_fewest() -> None:
    assert gpus.freest(["a", "b"], []) == "a"
    assert gpus.freest(["a", "b"], ["a"]) == "b"
    assert gpus.freest(["a", "b"], ["b", "a", "b"]) == "a"
    assert gpus.freest([], []) is None


def test_real_jobs_see_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through submitit, which hides all of them from its jobs; what they see is the reason they fail with."""
    (tmp_path / "sweep_spy.py").write_text(SPY)
    (tmp_path / "spec.toml").write_text(TWO)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setattr(gpus, "visible", lambda: ["7", "GPU-b"])
    told: list[str] = []
    outcome = sweeps.start(
        sweeps.read_sweep(tmp_path / "spec.toml"), tell=lambda cell, news: told.append(news)
    )
    assert len(outcome.failed) == 2
    assert told[:2] == ["begun", "begun"], "as many at once as there are GPUs"
    assert sorted(line.partition("sees ")[2] for line in told[2:]) == ["7", "GPU-b"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Slurm that takes no job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", "exit 0"), ("sbatch", "echo 'sbatch: error: no such partition' >&2; exit 1")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_what_slurm_refuses_is_a_failed_cell(
    slurm: None, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(write()), "--slurm", "partition=gpu"]) == 1
    said = capsys.readouterr().err
    assert said.count(": failed: not submitted: sbatch: error: no such partition") == 9
    assert "Traceback" not in said


def test_slurm_where_there_is_none(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["sweep", str(write()), "--slurm", "partition=gpu"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "--slurm: no Slurm here" in line


@pytest.mark.parametrize(("jobs", "each"), [(2, 20), (7, 5), (80, 4)])
def test_jobs_share_the_cores(
    jobs: int, each: int, write: Write, at_once: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many students learn side by side as there are cores for each of the nine cells, or of the jobs."""
    monkeypatch.setattr(working, "cores", lambda: 40)
    at_once.fail = "digits"  # they need not run
    assert len(sweeps.start(sweeps.read_sweep(write()), jobs=jobs).failed) == 9
    assert at_once.sides == each


def test_cells_with_several_threads_need_as_many_cores(
    write: Write, at_once: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "cores", lambda: 8)
    at_once.fail = "digits"
    sweeps.start(sweeps.read_sweep(write(**{"points = 2": "points = 2\nthreads = 3"})))
    assert at_once.most == 2


def test_what_a_machine_cannot_do_is_told_first(
    write: Write, at_once: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Slurm it is another one that does it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sweep = sweeps.read_sweep(write(**{"points = 2": 'points = 2\nprecision = "tf32"'}))
    with pytest.raises(UserError, match="--precision tf32 needs a GPU"):
        sweeps.start(sweep)
    at_once.fail = "digits"
    assert len(sweeps.start(sweep, slurm={}).failed) == 9


def test_under_slurm_all_cells_are_submitted_at_once(
    write: Write, at_once: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the login node's GPUs are nobody's."""
    monkeypatch.setattr(gpus, "visible", lambda: ["0"])
    monkeypatch.setattr(working, "cores", lambda: 2)
    assert sweeps.start(sweeps.read_sweep(write()), slurm={}).failed == {}
    assert at_once.most == 9
    with pytest.raises(UserError, match="--jobs 0: at least 1"):
        sweeps.start(sweeps.read_sweep(write()), jobs=0)


LONG = """
labels = ["soft"]
budgets = ["2M"]
[[targets]]
name = "digits"
path = "{target}"
[[methods]]
method = "dual-student"
preset = "small"
"""


def test_several_processes_are_for_one_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process of torchrun would do the whole sweep, in the same folder."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["sweep", "spec.toml"]) == 2
    assert "'sweep' is work for one process: start it without torchrun" in capsys.readouterr().err


def test_ctrl_c_leaves_a_line_and_no_trace(tmp_path: Path, digits_target: Path) -> None:
    """A terminal sends it to all processes of a sweep: submitit's would print where each of them was."""
    (tmp_path / "spec.toml").write_text(LONG.format(target=digits_target))
    command = [sys.executable, "-m", "dualstudent", "sweep", str(tmp_path / "spec.toml"), "--jobs", "1"]
    sweep = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = "runs/digits/dual-student/soft/2000000/seed0/metrics.jsonl"
    until = time.monotonic() + 120
    try:
        while not list(tmp_path.rglob(metrics)):
            assert time.monotonic() < until
            time.sleep(0.2)
        os.killpg(sweep.pid, signal.SIGINT)
        said = sweep.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
    assert sweep.returncode == 130
    assert "Traceback" not in said
    assert "stopping cells, which go on from their last snapshots" in said
    assert f"sweep stopped; go on with: dualstudent sweep {tmp_path / 'spec.toml'}" in said


def test_a_closed_terminal_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(number: int) -> int:
        raise OSError("bad file descriptor")

    monkeypatch.setattr(os, "dup", closed)
    with working._erring_into(tmp_path / "log"):
        pass
    assert not (tmp_path / "log").exists()
