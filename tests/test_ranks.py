"""One run over two processes: the same students everywhere, one budget, one bill, and no hanging."""

import json
import os
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
from dualstudent import engine, methods
from dualstudent.ledger import Account, Shown
from test_contract import LAST, quick, weights
from test_kill import OPTIONS, outcome

RANKS = 2


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


SCOUTS = {"scout": "resnet8"}  # that choose for another
KINDS = ((ds.Access.PROBS, 4), (ds.Access.LABEL, 4), (ds.Access.LABEL, None))
CASES: list[tuple[str, str, ds.Access, int | None, dict[str, Any]]] = [
    *(
        (name, preset, access, classes, {})
        for name, preset in LAST
        for access, classes in KINDS
        if access >= methods.find(name).needs
    ),
    *(("frugal", "default", access, classes, SCOUTS) for access, classes in KINDS),
]


def work(rank: int, address: int, out: str) -> None:
    """What one rank does: run each case and write down what it holds and what its target saw."""
    from dualstudent import parallel

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
    return torchrun(*words, *OPTIONS, "--snapshot-every", "0.2")


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
    done = subprocess.run(extraction(digits_target, out), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert (result["spent"], result["unique"], result["complete"]) == (3001, 3001, True)
    assert result["bill"]["asked_again"] == 0
    assert sum(result["histogram"].values()) == 3001
    assert done.stdout.count("the bill and the copy") == 1, "one rank speaks"
    return outcome(out)


@pytest.mark.slow
def test_a_killed_rank_ends_the_other_and_resume_is_exact(
    digits_target: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(extraction(digits_target, out), stderr=subprocess.PIPE, text=True)
    account, deadline = out / "attack.account", time.monotonic() + 120
    while not (account.exists() and len(account.read_text().split()) > 8) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert (
        "lost the other processes" in said
        or "SIGTERM" in said
        or "Signal 15" in said
        or "stopped after" in said
    )

    refused = [sys.executable, "-m", "dualstudent", "resume", str(out)]
    alone = subprocess.run(refused, capture_output=True, text=True)
    assert alone.returncode == 2
    assert "was begun with 2 ranks" in alone.stderr
    assert len(alone.stderr.strip().splitlines()) == 1

    again = subprocess.run(torchrun("resume", str(out)), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert outcome(out) == whole
