"""What a service may charge for is never more than the bill says at most, whatever broke off on the way."""

import json
import shutil
from pathlib import Path

import pytest

import dualstudent as ds
from dualstudent.cli import main
from dualstudent.journal import ATTACK, Journal
from fault_server import Faulty
from test_paid import METHOD

FAULTS = {
    "2": {"reset": "after"},  # computed, and the answer lost
    "3": {"cut": 10},
    "4": {"status": 503},
    "5": {"status": 502},
    "6": {"status": 429},
}


def test_of_requests_that_broke_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Faulty(faults=FAULTS) as server:
        words = ["extract", "dual-student", "--target", server.url, "--queries", "80", "--price", "10"]
        words += ["--batch", "8", "--width", "4", "--noise-size", "8", "--data", "none", "--probe-every", "0"]
        more = ["--request-batch", "4", "--concurrency", "1", "--pause", "0.01"]
        assert main([*words, *more, "--out", str(tmp_path / "run")]) == 0
        computed = server.count()["images"]
    bill = json.loads((tmp_path / "run" / "result.json").read_text())["bill"]
    assert (bill["asked"], bill["failed"], bill["broken_off"]) == (80, 20, 12)
    assert bill["asked"] < computed <= bill["asked"] + bill["broken_off"]
    assert (bill["price"], bill["price_at_most"]) == (0.8, 0.92)
    said = " ".join(capsys.readouterr().out.split())
    assert "of them broken off │ 12" in said
    assert "price │ 0.8 … 0.92" in said


def test_after_a_kill_too(tmp_path: Path) -> None:
    """What broke off before a request was sent again is on disk when it is."""
    traffic = ds.Traffic()
    with Journal(tmp_path / "journal.sqlite", "a") as journal:
        journal.follow(traffic)
        number = journal.begin(ATTACK, 0, 8, tells=True)
        journal.sending(number, [(0, 4)])
        traffic.requests, traffic.broken_off = 2, 4
        journal.sending(number, [(0, 4)])
        for name in ("journal.sqlite", "journal.sqlite-wal"):  # as a kill would leave them
            (tmp_path / "killed").mkdir(exist_ok=True)
            shutil.copyfile(tmp_path / name, tmp_path / "killed" / name)
    with Journal(tmp_path / "killed" / "journal.sqlite", "a") as journal:
        assert (journal.traffic().requests, journal.traffic().broken_off) == (2, 4)
        assert journal.before(ATTACK, 0, 8)[0].tolist() == [1] * 4 + [0] * 4


def test_without_faults_or_without_a_service_there_is_one_price(tmp_path: Path, digits_target: Path) -> None:
    target = ds.open_target(str(digits_target))
    for journal in (False, True):
        run = ds.extract(METHOD, target, queries=40, out=tmp_path / str(journal), price=1.0, journal=journal)
        most = run.result["bill"]["price_at_most"]
        assert (run.result["bill"]["price"], most) == (0.04, 0.04 if journal else None)
