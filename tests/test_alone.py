"""A run belongs to one process at a time: what another one wants of it is refused, and nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import dualstudent as ds
from dualstudent import experiment
from dualstudent.cli import main
from dualstudent.experiment.folder import RunFolder
from dualstudent.ledger import Account
from paid_fixture import Paid, service
from test_paid import METHOD, extract, some

HOLD = """
import sys, time
from dualstudent.experiment.folder import RunFolder
with RunFolder(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


def wanted(run: Path, target: Paid) -> dict[str, Callable[[], object]]:
    """Return what another process may want of a run."""
    return {
        "extract": partial(extract, METHOD, service(), queries=40, out=run, overwrite=True),
        "resume": partial(ds.resume, run, target, queries=200),
        "evaluate": partial(ds.evaluate, run, some(5), service()),
        "transfer": partial(experiment.attack_run, path=run, data=some(5), attacks=[]),
        "repair": partial(experiment.repair_journal, run),
    }


def content(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_nobody_else_gets_a_run_that_goes_on(tmp_path: Path) -> None:
    run, target, said = tmp_path / "run", service(), dict[str, str]()

    def others(n: int) -> None:
        if n == 5:
            before = content(run)
            for name, command in wanted(run, target).items():
                with pytest.raises(ds.UserError, match="is in use: another process") as caught:
                    command()
                said[name] = str(caught.value)
            assert content(run) == before, "nothing is changed"

    target.before = others
    done = extract(METHOD, target, queries=80, out=run)
    assert list(said) == list(wanted(run, target))
    assert done.result["bill"]["asked"] == done.result["spent"] == 80 == target.seen
    assert main(["journal", "verify", str(run)]) == 0
    assert not (run / "lock").exists()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    run = extract(METHOD, service(), queries=40, out=tmp_path / "run").path
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ds.UserError, match="is in use"):
            ds.resume(run, service(), queries=80)
        other.send_signal(signal.SIGKILL)
    assert (run / "lock").exists()
    assert ds.resume(run, service(), queries=80).result["spent"] == 80


def test_an_account_charges_the_run_it_began_with(tmp_path: Path) -> None:
    """A folder that was replaced by hand, whatever the lock says, is another run's: it is not charged."""
    account = Account("attack", path=tmp_path / "run" / "account")
    (tmp_path / "run").mkdir()
    account.charge(5)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "account").write_text("3\n")
    with pytest.raises(ds.UserError, match="deleted or replaced while the run went on; nothing was asked"):
        account.charge(7)
    assert (tmp_path / "run" / "account").read_text() == "3\n"
    assert account.asked == 5


def test_an_account_keeps_no_file_open_for_ever(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    for i in range(5):
        Account("attack", path=tmp_path / str(i)).charge(1)
    assert opened() <= before


class TestAFailedStart:
    """Where an error comes before anything is charged, what was made is gone, and the name is free."""

    def begin(self, out: Path, **more: Any) -> ds.Run:
        return extract(METHOD, service(), queries=40, out=out, **more)

    @pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
    def test_leaves_no_folder(self, there: bool, tmp_path: Path) -> None:
        out = tmp_path / "run"
        if there:
            out.mkdir()
        with pytest.raises(ds.UserError, match="--snapshot-every inf: a finite number"):
            self.begin(out, snapshot_every=float("inf"))
        assert out.exists() == there
        assert self.begin(out).result["spent"] == 40

    def test_of_a_journal_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*args: Any, **kwargs: Any) -> None:
            raise ds.UserError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr("dualstudent.experiment.paying.Journal", full)
            with pytest.raises(ds.UserError, match="disk is full"):
                self.begin(tmp_path / "run")
        assert not (tmp_path / "run").exists()
        self.begin(tmp_path / "run")

    def test_keeps_the_run_that_it_would_replace(self, tmp_path: Path) -> None:
        self.begin(tmp_path / "run")
        before = content(tmp_path / "run")
        with pytest.raises(ds.UserError, match="a finite number"):
            self.begin(tmp_path / "run", snapshot_every=float("inf"), overwrite=True)
        assert content(tmp_path / "run") == before

    def test_keeps_what_was_charged(self, tmp_path: Path) -> None:
        def fail(n: int) -> None:
            raise ds.TargetError("gone")

        with pytest.raises(ds.TargetError, match="gone"):
            extract(METHOD, service(before=fail), queries=40, out=tmp_path / "run")
        assert Account("attack", path=RunFolder(tmp_path / "run").attack).asked == METHOD.queries_per_step
        assert ds.resume(tmp_path / "run", service()).result["spent"] == 40
