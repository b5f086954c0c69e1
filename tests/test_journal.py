"""The file: every answer once, durably, or one line that says why not, before anything is asked."""

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dualstudent as ds
from dualstudent.journal import ATTACK, Journal


def answers(n: int, k: int = 4, kind: Any = np.float32) -> Any:
    return np.random.default_rng(n).dirichlet(np.ones(k), n).astype(kind)


def keep(journal: Journal, first: int, n: int, *, done: bool = True, purpose: str = ATTACK) -> Any:
    """Ask and record n images at once; return their answers."""
    rows, at = answers(n), range(first, first + n)
    attempts = 1 + journal.before(purpose, first, n)[0]
    journal.begin(purpose, first, n)
    names = [b"%016d" % i for i in at]
    journal.record(purpose, at, names, rows, attempts.tolist(), done=(first, n) if done else None)
    return rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


class TestAnswers:
    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    def test_are_there_again_to_the_bit(self, path: Path, kind: Any) -> None:
        rows = answers(5, kind=kind)
        with Journal(path, "a") as journal:
            journal.record(ATTACK, range(2, 7), [b"%016d" % i for i in range(5)], rows, [1, 2, 3, 4, 5])
        with Journal(path, "a", paid=7) as journal:
            held = journal.held(ATTACK, 0, 100)
        assert list(held) == [2, 3, 4, 5, 6]
        assert [row.attempts for row in held.values()] == [1, 2, 3, 4, 5]
        assert [row.digest for row in held.values()] == [b"%016d" % i for i in range(5)]
        kept = np.stack([row.answer for row in held.values()])
        assert kept.dtype == rows.dtype
        assert kept.tobytes() == rows.tobytes()

    def test_of_one_purpose_are_not_those_of_another(self, path: Path) -> None:
        with Journal(path, "a") as journal:
            keep(journal, 0, 3)
            keep(journal, 0, 2, purpose="audit x")
            assert (journal.count(ATTACK), journal.count("audit x"), journal.count("audit y")) == (3, 2, 0)
            assert (journal.count(ATTACK, 1), journal.count(ATTACK, 0, 1)) == (2, 1)

    def test_of_a_request_are_all_there_or_none(self, path: Path) -> None:
        with Journal(path, "a") as journal:
            keep(journal, 4, 2)
            with pytest.raises(ds.UserError, match="5 answers could not be kept"):
                keep(journal, 1, 5)  # the fourth of them is there already
            assert journal.count(ATTACK) == 2
            keep(journal, 0, 4)
            assert journal.count(ATTACK) == 6

    def test_are_kept_from_several_threads(self, path: Path) -> None:
        with Journal(path, "a") as journal:
            work = [threading.Thread(target=keep, args=(journal, 50 * i, 50)) for i in range(8)]
            for thread in work:
                thread.start()
            for thread in work:
                thread.join()
            assert journal.count(ATTACK) == 400

    def test_that_were_changed_are_not_given_out(self, path: Path) -> None:
        with Journal(path, "a") as journal:
            keep(journal, 0, 3)
        with sqlite3.connect(path) as file:
            file.execute("UPDATE answers SET answer = ? WHERE position = 1", (answers(1).tobytes(),))
        file.close()
        with Journal(path, "a", paid=3) as journal, pytest.raises(ds.UserError, match="image 1 is damaged"):
            journal.held(ATTACK, 0, 3)


class TestBegun:
    def sent(self, journal: Journal, first: int, n: int) -> list[list[int]]:
        """Return how often images were sent without an answer, and for which a charge is left."""
        sent, left = journal.before(ATTACK, first, n)
        return [sent.tolist(), left.astype(int).tolist()]

    def test_questions_that_a_crash_left_open_count_as_sent(self, path: Path) -> None:
        with Journal(path, "a") as journal:
            for first in (0, 4, 0):
                journal.begin(ATTACK, first, 4)
        with Journal(path, "a") as journal:
            assert self.sent(journal, 2, 4) == [[2, 2, 1, 1], [0, 0, 0, 0]]
            assert self.sent(journal, 6, 4) == [[1, 1, 0, 0], [0, 0, 0, 0]]

    def test_of_those_that_told_only_what_was_sent_is(self, path: Path) -> None:
        with Journal(path, "a") as journal:
            number = journal.begin(ATTACK, 0, 8, tells=True)
            journal.sending(number, [(4, 2), (0, 1)])
        with Journal(path, "a") as journal:
            assert self.sent(journal, 0, 8) == [[1, 0, 0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0, 1, 1]]
            assert self.sent(journal, 5, 4) == [[1, 0, 0, 0], [0, 1, 1, 0]]
            number = journal.begin(ATTACK, 0, 8, tells=True)
            journal.sending(number, [(0, 2)])
            assert self.sent(journal, 0, 8) == [[2, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]]

    def test_after_the_power_was_off_all_may_have_been_sent(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Journal(path, "a") as journal:
            journal.begin(ATTACK, 0, 4, tells=True)
            assert self.sent(journal, 0, 4) == [[0] * 4, [1] * 4]
        monkeypatch.setattr("dualstudent.journal.book.BOOT", "another")
        with Journal(path, "a") as journal:
            assert self.sent(journal, 0, 4) == [[1] * 4, [0] * 4]

    def test_answered_questions_are_forgotten(self, path: Path) -> None:
        with Journal(path, "a") as journal:
            keep(journal, 0, 4)
            assert self.sent(journal, 0, 8) == [[0] * 8, [0] * 8]
            keep(journal, 8, 2, done=False)
            assert self.sent(journal, 8, 4) == [[1, 1, 0, 0], [0] * 4]


class TestTraffic:
    def test_grows_over_sessions_by_what_each_has_seen(self, path: Path) -> None:
        traffic = ds.Traffic(requests=10, statuses={"200": 9})  # of another run, before
        with Journal(path, "a") as journal:
            journal.follow(traffic)
            traffic.requests, traffic.statuses["200"] = 12, 11
            keep(journal, 0, 1)
            traffic.requests = 15
        traffic = ds.Traffic()
        with Journal(path, "a", paid=1) as journal:
            journal.follow(traffic)
            traffic.requests, traffic.statuses["503"] = 4, 1
            total = journal.traffic()
        assert total.requests == 5 + 4
        assert total.statuses == {"200": 2, "503": 1}


class TestAhead:
    """What comes is taken at once; what is told of waiting is the time of who takes it."""

    def test_answers_come_while_nobody_waits(self, path: Path) -> None:
        came: list[int] = []

        def answers() -> Iterator[int]:
            for i in range(3):
                time.sleep(0.05)
                came.append(i)
                yield i

        with Journal(path, "a") as journal:
            journal.follow(ds.Traffic())
            taken = journal.ahead(answers())
            time.sleep(0.4)
            assert came == [0, 1, 2]
            assert list(taken) == [0, 1, 2]
            assert journal.traffic().waiting < 0.1
            assert list(journal.ahead(answers())) == [0, 1, 2]
            assert 0.14 < journal.traffic().waiting < 0.4

    def test_an_error_comes_after_what_was_answered(self, path: Path) -> None:
        def answers() -> Iterator[int]:
            yield 1
            raise ds.TargetError("no more")

        with Journal(path, "a") as journal:
            taken = journal.ahead(answers())
            assert next(taken) == 1
            with pytest.raises(ds.TargetError, match="no more"):
                next(taken)

    def test_what_is_under_way_is_kept_when_a_run_ends(self, path: Path) -> None:
        def answers() -> Iterator[int]:
            for i in range(3):
                time.sleep(0.05)
                keep(journal, i, 1)
                yield i

        with Journal(path, "a") as journal:
            journal.ahead(answers())
        with Journal(path, "a") as journal:
            assert journal.count(ATTACK) == 3


class TestRefused:
    """In one line, before anything is asked, and nothing is changed."""

    @pytest.fixture
    def full(self, path: Path) -> Path:
        with Journal(path, "a") as journal:
            for first in range(0, 2000, 50):
                keep(journal, first, 50)
        return path

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda raw: raw[: len(raw) // 2], "damaged"),
            (lambda raw: raw[:-2048], "damaged"),
            (lambda raw: b"not a database at all, but long enough to be read as one" * 40, "no journal"),
            (lambda raw: b"garbage", "no journal"),
            (lambda raw: b"", "is empty, and 2000 images are paid"),
            (lambda raw: raw[:4096] + bytes(4096) + raw[8192:], "damaged|no journal"),
        ],
        ids=["truncated", "torn", "garbage", "short", "empty", "zeroed"],
    )
    def test_a_damaged_file(self, full: Path, spoil: Callable[[bytes], bytes], words: str) -> None:
        spoilt = spoil(full.read_bytes())
        full.write_bytes(spoilt)
        with pytest.raises(ds.UserError, match=words) as caught:
            Journal(full, "a", paid=2000)
        assert "\n" not in str(caught.value)
        assert full.read_bytes() == spoilt

    def test_a_missing_file(self, path: Path) -> None:
        with pytest.raises(ds.UserError, match="is missing, and 7 images are paid"):
            Journal(path, "a", paid=7)
        assert not path.exists()

    def test_another_runs(self, full: Path) -> None:
        with pytest.raises(ds.UserError, match="another run's journal"):
            Journal(full, "b", paid=1)

    def test_another_programs(self, path: Path) -> None:
        file = sqlite3.connect(path)
        file.execute("CREATE TABLE meta (name TEXT, value TEXT)")
        file.close()
        with pytest.raises(ds.UserError, match="no journal of this program"):
            Journal(path, "a")

    def test_to_other_processes_while_it_is_open(self, full: Path) -> None:
        count = "sqlite3.connect(sys.argv[1], 0).execute('SELECT count(*) FROM answers').fetchone()"
        command = [sys.executable, "-c", f"import sqlite3, sys; print({count})", str(full)]
        with Journal(full, "a", paid=10_000):
            done = subprocess.run(command, capture_output=True, text=True)
            assert "database is locked" in done.stderr
            with pytest.raises(ds.UserError, match="another process is using it"):
                Journal(full, "a", paid=1)
        assert subprocess.run(command, capture_output=True, text=True).stdout == "(2000,)\n"

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(ds.UserError, match="cannot be opened or made"):
            Journal(tmp_path / "none" / "journal.sqlite", "a")

    def test_a_torn_log_keeps_every_whole_request(self, path: Path, tmp_path: Path) -> None:
        """What a power cut leaves of a write-ahead log: SQLite drops the part that is not whole."""
        whole = Journal(path, "a")
        for first in range(0, 80, 8):
            keep(whole, first, 8)
        log = path.with_name(path.name + "-wal").read_bytes()
        for cut in (len(log) - 1, len(log) * 2 // 3, len(log) // 2):
            copy = tmp_path / f"{cut}" / "journal.sqlite"
            copy.parent.mkdir()
            copy.write_bytes(path.read_bytes())
            copy.with_name(copy.name + "-wal").write_bytes(log[:cut])
            with Journal(copy, "a", paid=80) as torn:
                held = torn.held(ATTACK, 0, 80)
            assert 0 < len(held) < 80
            assert list(held) == list(range(len(held)))
            assert len(held) % 8 == 0
        whole.close()


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_kept(path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept: list[int] = []

    def fill(journal: Journal) -> None:
        for first in range(0, 10_000, 64):
            keep(journal, first, 64)
            kept.append(first)

    with Journal(path, "a") as journal:
        try:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (600_000, before[1])
            )  # files end there, as on a full disk
            with pytest.raises(ds.UserError, match="is the disk full") as caught:
                fill(journal)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert len(kept) > 10
    with Journal(path, "a", paid=10_000) as journal:
        assert sorted(journal.held(ATTACK, 0, 10_000)) == list(range(64 * len(kept)))
        keep(journal, 64 * len(kept), 64)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_small_file_system_that_is_full(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)]).returncode:
        pytest.skip("this machine mounts nothing")

    def fill() -> None:
        with Journal(small / "journal.sqlite", "a") as journal:
            for first in range(0, 100_000, 64):
                keep(journal, first, 64)
                kept.append(first)

    kept: list[int] = []
    try:
        with pytest.raises(ds.UserError, match="the disk is full"):
            fill()
        shutil.copytree(small, large)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert len(kept) > 10
    with Journal(large / "journal.sqlite", "a", paid=10_000) as journal:
        assert sorted(journal.held(ATTACK, 0, 100_000)) == list(range(64 * len(kept)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_place_that_became_read_only(tmp_path: Path) -> None:
    """Nothing can be kept there, so nothing is asked; what is there can be copied and read."""
    place, copy = tmp_path / "place", tmp_path / "copy"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)]).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        with Journal(place / "journal.sqlite", "a") as journal:
            keep(journal, 0, 8)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        with pytest.raises(ds.UserError, match="cannot be written") as caught:
            Journal(place / "journal.sqlite", "a", paid=8)
        assert "\n" not in str(caught.value)
        shutil.copytree(place, copy)
    finally:
        subprocess.run(["umount", str(place)], check=True)
    with Journal(copy / "journal.sqlite", "a", paid=8) as journal:
        assert journal.count(ATTACK) == 8
