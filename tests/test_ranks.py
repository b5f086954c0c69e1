"""One run over two processes: the same students everywhere, one budget, one bill, and no hanging."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, methods, parallel, targets
from dualstudent.cli import main
from dualstudent.errors import Stopped, UserError
from dualstudent.ledger import Account, Shown
from test_contract import LAST, quick, weights
from test_kill import OPTIONS, outcome

RANKS = 2


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


ALONE = {"students": 1}
KINDS = ((ds.Access.PROBS, 4), (ds.Access.LABEL, 4), (ds.Access.LABEL, None))
CASES: list[tuple[str, str, ds.Access, int | None, dict[str, Any]]] = [
    *(
        (name, preset, access, classes, {})
        for name, preset in LAST
        for access, classes in KINDS
        if access >= methods.find(name).needs
    ),
    *(("frugal", "default", access, classes, ALONE) for access, classes in KINDS),
]


def work(rank: int, address: int, out: str) -> None:
    """What one rank does: run each case and write down what it holds and what its target saw."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(address)}
    os.environ |= names | {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    values = []
    with parallel.ranks():
        for name, preset, access, classes, more in CASES:
            target = Linear(ds.Spec((1, 8, 8), classes, access=access), 4)
            account, shown = Account("attack", 97), Shown()
            state = engine.run(quick(name, preset, **more), target, account, budgets=[97], shown=shown)
            held = {"weights": weights(state), "seen": target.seen, "spent": account.spent}
            values.append(held | {"unique": shown.unique, "histogram": shown.histogram()})
        shares = [parallel.shard(n) for n in (7, 8)]
    torch.save({"cases": values, "shares": shares}, f"{out}/{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks noted down."""
    out = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (port(), str(out)), nprocs=RANKS)  # type: ignore[no-untyped-call,attr-defined]
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_every_rank_ends_with_the_same_state(case: int, both: list[dict[str, Any]]) -> None:
    one, two = (rank["cases"][case] for rank in both)
    assert len(one["weights"]) == len(two["weights"]) > 10
    assert all(torch.equal(a, b) for a, b in zip(one["weights"], two["weights"], strict=True))
    assert one["seen"] + two["seen"] == one["spent"] == two["spent"] == 97
    assert 0 < one["unique"] == two["unique"] <= 97
    assert one["histogram"] == two["histogram"]


def test_shares_of_a_batch(both: list[dict[str, Any]]) -> None:
    assert [sum(pair) for pair in zip(*(rank["shares"] for rank in both), strict=True)] == [7, 8]


def torchrun(*words: str, ranks: int = RANKS) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return [*launch, "--master-port", str(port()), "-m", "dualstudent", *words]


def extraction(target: Path, out: Path) -> list[str]:
    words = ["extract", "dual-student", "--target", str(target), "--queries", "3001", "--out", str(out)]
    return [*words, *OPTIONS, "--snapshot-every", "0.2"]


def children(parent: int) -> list[int]:
    """Return the ranks' process numbers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, line = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == parent and "dualstudent" in line:
                found.append(int(entry.name))
    return sorted(found)


@pytest.fixture(scope="module")
def whole(digits_target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed run of two ranks ends with."""
    out = tmp_path_factory.mktemp("ranks") / "run"
    done = subprocess.run(
        torchrun(*extraction(digits_target, out)), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert (result["spent"], result["unique"], result["complete"]) == (3001, 3001, True)
    assert result["bill"]["asked_again"] == 0
    assert sum(result["histogram"].values()) == 3001
    assert done.stdout.count("the bill and the copy") == 1, "one rank speaks"
    return outcome(out)


@pytest.fixture
def second_of_three(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order, in the last of three processes on a machine that says it has two GPUs."""
    names = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "RANK": "1"}
    for name, value in {**names, "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    done: list[str] = []

    def opened(*args: Any, **more: Any) -> Any:
        done.append("opened")
        raise UserError("far enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: done.append(f"on {number}"))
    monkeypatch.setattr(targets, "open_target", opened)
    return done


EXTRACT = ["extract", "dual-student", "--target", "t", "--queries", "100", "--out", "o"]


def test_a_rank_takes_its_gpu_before_it_opens_the_target(second_of_three: list[str]) -> None:
    assert main(EXTRACT) == 2
    assert second_of_three == ["on 1", "opened"]


def test_ranks_on_a_cpu_leave_the_gpus_alone(second_of_three: list[str]) -> None:
    assert main([*EXTRACT, "--device", "cpu"]) == 2
    assert second_of_three == ["opened"]


@pytest.mark.parametrize(
    ("rank", "device", "said"),
    [
        ("2", "cuda", "3 processes on a machine with 2 GPUs: give torchrun --nproc-per-node 2 at most"),
        ("0", "cuda:0", "--device cuda:0: several processes need a GPU each: say --device cuda"),
    ],
)
def test_ranks_without_a_gpu_of_their_own_are_refused(
    rank: str,
    device: str,
    said: str,
    second_of_three: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert main([*EXTRACT, "--device", device]) == 2
    assert second_of_three == []
    [line] = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_another_number_of_ranks_is_refused(digits_target: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    target = ds.open_target(str(digits_target))
    with pytest.raises(Stopped):
        ds.extract(quick("procedural", "default"), target, queries=97, out=out, stop=lambda: True)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"ranks": 2}))
    with pytest.raises(UserError, match=r"was begun with 2 ranks, here are 1.*--nproc-per-node 2") as refused:
        ds.resume(out)
    assert "\n" not in str(refused.value)


def test_snapshots_that_differ_between_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "total", lambda number: number + 1)
    target = Linear(ds.Spec((1, 8, 8), 4))
    with pytest.raises(UserError, match="all machines need the same folder of the run"):
        engine.run(quick("procedural", "default"), target, Account("attack", 97), budgets=[97])
    assert target.seen == 0


def charged(out: Path) -> bool:
    """Whether a run has asked a few batches."""
    account = out / "attack.account"
    return account.exists() and len(account.read_text().split()) > 8


@pytest.mark.parametrize("killed", range(RANKS))
def test_a_rank_says_in_one_line_that_the_others_are_gone(
    killed: int, digits_target: Path, tmp_path: Path
) -> None:
    """Started without torchrun, which would end it, and say so, by itself; rank 0 keeps the meeting place."""
    out, address = tmp_path / "run", port()
    words = [*extraction(digits_target, out), "--device", "cpu"]
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(address), "WORLD_SIZE": str(RANKS)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "dualstudent", *words],
            env={**os.environ, **names, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        deadline = time.monotonic() + 120
        while not charged(out) and time.monotonic() < deadline:
            time.sleep(0.01)
        ranks[killed].kill()
        left = ranks[1 - killed]
        said = left.communicate(timeout=60)[1]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert left.returncode == 2, said
    lines = [line for line in said.splitlines() if line.startswith("dualstudent")]
    assert f": rank {1 - killed} lost the other processes of this run: see" in lines[-1]
    assert "Traceback" not in said


def test_who_cannot_join_the_others_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong host or a closed port; nothing was begun that could be resumed."""
    for name, value in {
        "MASTER_ADDR": "host",
        "MASTER_PORT": "29500",
        "WORLD_SIZE": "2",
        "RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)

    def refuse(backend: str) -> None:
        raise RuntimeError("timed out\nstack of C++")

    monkeypatch.setattr("torch.distributed.init_process_group", refuse)
    said = re.escape("rank 1 cannot join the others by host:29500: timed out")
    with pytest.raises(UserError, match=f"^{said}$"), parallel.ranks("cpu"):
        raise AssertionError


def test_a_rank_out_of_memory_says_so() -> None:
    """Others may be well."""
    with pytest.raises(torch.OutOfMemoryError), parallel._together():
        raise torch.OutOfMemoryError


@pytest.mark.slow
@pytest.mark.parametrize("killed", range(RANKS))
def test_resume_after_a_killed_rank_is_exact(
    killed: int, digits_target: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(torchrun(*extraction(digits_target, out)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not charged(out) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(children(process.pid)[killed], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    again = subprocess.run(torchrun("resume", str(out)), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert outcome(out) == whole
