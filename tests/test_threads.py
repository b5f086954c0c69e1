"""What a process asks of its machine: threads by the student's work, memory that stays."""

import os
import platform
import queue
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from dualstudent import cli, demo, machine, methods, threads
from dualstudent import sweep as sweeps
from dualstudent.cli import commands
from dualstudent.cli.commands import light
from dualstudent.sweep import work as working
from sweep_fixture import Write


@pytest.mark.parametrize(
    ("method", "student", "shape", "one"),
    [
        ("dual-student", "auto", (1, 8, 8), True),
        ("dual-student", "lenet5-half", (1, 32, 32), True),
        ("frugal", "lenet5", (1, 28, 28), True),
        ("frugal", "auto", (1, 28, 28), True),
        ("frugal", "auto", (3, 32, 32), False),  # it takes a resnet8
        ("dual-student", "resnet8", (3, 12, 12), True),
        ("dual-student", "resnet18", (1, 12, 12), False),
        ("dual-student", "torch:package:factory", (1, 8, 8), False),
    ],
)
def test_light_students(method: str, student: str, shape: tuple[int, int, int], one: bool) -> None:
    assert light(methods.find(method)(student=student), shape) == one  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("words", "asked"),
    [([], [1]), (["--threads", "3"], [3]), (["--student", "resnet18", "--batch", "2"], [])],
)
@pytest.mark.parametrize("command", ["plan", "extract"])
def test_threads_of_a_command(
    command: str,
    words: list[str],
    asked: list[int],
    digits_target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    sides: list[int | None] = []
    monkeypatch.setattr(commands, "side_by_side", lambda most=None: sides.append(most))
    out = ["--out", str(tmp_path / "run"), "--points", "1"] if command == "extract" else []
    more = ["--target", str(digits_target), "--queries", "4", "--width", "4", *out, *words]
    assert cli.main([command, "dual-student", *more]) == 0
    assert set_to == asked
    told = "--threads" in words
    assert sides == ([] if told else [None])
    if command == "extract":
        assert cli.main(["resume", str(tmp_path / "run"), "--queries", "8"]) == 0
        assert sides == ([] if told else [None, None]), "as the run began"


def test_the_help_says_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["extract", "frugal", "--help"])
    said = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "default: 1 for students of up to 6 MFLOP an image, which then learn side by side" in said
    assert "queries between probes for another model" in said


PROGRAM = """
import os, sys
import dualstudent.cli

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch is loaded with", os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, Watch())
assert "torch" not in sys.modules
dualstudent.cli.main(["list", "--json"])
"""


@pytest.mark.parametrize(("told", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep(told: str | None, policy: str) -> None:
    """OpenMP reads it once, when torch is loaded."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {} if told is None else {"OMP_WAIT_POLICY": told}
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines()[0] == f"torch is loaded with {policy}"


def test_commands_and_sweeps_keep_memory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(cli, "keep_memory", lambda: calls.append("command"))
    assert cli.main(["--version"]) == 0
    monkeypatch.setattr(working, "keep_memory", lambda: calls.append("cell"))
    working.work(asdict(sweeps.read_sweep(write()).cells[0]))
    assert calls == ["command", "cell"]


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those it is bound to, and no more than somebody grants it, as a container does."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert threads.cores() == 3
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    assert threads.cores() == 2


KEEPING = """
import resource, threading, torch
from dualstudent.machine import keep_memory

assert keep_memory()
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
faults()
faults()
thread = threading.Thread(target=faults)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_is_kept_whatever_thread_it_is_for() -> None:
    """64 MB are 16,384 pages of 4 KB, which come once."""
    said = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    first, again, by_another = map(int, said.stdout.split())
    assert max(again, by_another) < 100 < 16_384 + 1000 > first


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_a_copy_of_the_demo_keeps_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own process, here in ours; what stops it, no target here, is told in a line."""
    kept: list[str] = []
    monkeypatch.setattr(demo, "keep_memory", lambda: kept.append("memory"))
    monkeypatch.setattr(signal, "signal", lambda *words: None)
    news: queue.Queue[tuple[Any, ...]] = queue.Queue()
    demo._copy(tmp_path, "soft", 0, 64, news)
    assert kept == ["memory"]
    assert str(tmp_path / "target") in news.get_nowait()[-1]


@pytest.mark.parametrize("limit", ["none", "ulimit -v 8000000", "MALLOC_PERTURB_=1"])
def test_large_pages_are_for_addresses_that_are_free(limit: str) -> None:
    """With a limit on them memory is kept, and nothing is taken at once."""
    if limit == "none" and not machine.addresses_are_free():
        pytest.skip("this machine limits, counts or fills addresses itself")
    before = {"none": "true"}.get(limit, limit if limit.startswith("ulimit") else f"export {limit}")
    program = (
        "from dualstudent.machine import keep_memory; print(keep_memory(), open('/proc/self/smaps').read())"
    )
    command = ["sh", "-c", f'{before} && exec {sys.executable} -c "$0"', program]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("True")
    regions = re.findall(r"^(?:True )?([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: (.*?)$", said, re.M | re.S)
    large = [flags for start, end, flags in regions if int(end, 16) - int(start, 16) >= 3 << 30]
    assert bool(large) == (limit == "none")
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert all("hg" in flags.split() for flags in large)
