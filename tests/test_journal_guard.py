"""Journals of strangers: read in bounded time and memory, refused in one line, and left as they are."""

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dualstudent as ds
from dualstudent.cli import main
from dualstudent.experiment.journals import _minus
from dualstudent.journal import ATTACK, Journal, Row
from paid_fixture import service
from test_journal_cli import change
from test_paid import METHOD, extract, some

ENDLESS = """CREATE VIEW {} AS WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c)
SELECT 'attack' purpose, i position, x'00' digest, x'00' answer, '<f4' dtype, 0.0 time, 1 attempts,
x'00' sum, 'a' || i name, 'b' value FROM c"""
HUGE = 3 * 10**9
ROOM = 2 << 30  # bytes that a test may take beside what there is


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("journals") / "run"
    return extract(METHOD, service(), queries=80, out=out, data=some(10)).path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Hold this process to little more memory than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def view(table: str) -> str:
    return f"ALTER TABLE {table} RENAME TO other; {ENDLESS.format(table)}"


def row(position: int, answer: Any) -> tuple[str, tuple[Any, ...]]:
    values = Row(position, b"1" * 16, answer, 0.0, 1).values()
    return "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values


BEGUN = "INSERT INTO begun (purpose, first, images, boot) VALUES ('attack', {}, {}, '')"
NONE, DAMAGED, NEVER = "no journal of this program", "what no run writes", "never charged"
HOSTILE: dict[str, tuple[str, tuple[str, tuple[Any, ...]] | str]] = {
    "endless answers": (NONE, view("answers")),
    "endless meta": (NONE, view("meta")),
    "one more table": (NONE, "CREATE TABLE more (a)"),
    "trigger": (NONE, "CREATE TRIGGER t AFTER INSERT ON sessions BEGIN DELETE FROM answers; END"),
    "index": (NONE, "CREATE INDEX i ON answers (time)"),
    "far position": (NEVER, row(HUGE, np.full(4, 0.25, np.float32))),
    "huge question": (NEVER, BEGUN.format(0, HUGE)),
    "far question": (NEVER, BEGUN.format(HUGE, 5)),
    "question of text": (DAMAGED, BEGUN.format("'a'", "'b'")),
    "negative question": (DAMAGED, BEGUN.format(-5, 3)),
    "sent of text": (DAMAGED, "INSERT INTO sent VALUES (1, 'a', 5)"),
    "attempts of text": (DAMAGED, "UPDATE answers SET attempts = 'x' WHERE position = 3"),
    "time of text": (DAMAGED, "UPDATE answers SET time = 'x' WHERE position = 3"),
    "time without end": (DAMAGED, "UPDATE answers SET time = 9e999 WHERE position = 3"),
    "empty answer": (DAMAGED, row(81, np.ones(0, np.float32))),
    "text that is none": (DAMAGED, "UPDATE answers SET dtype = CAST(x'ff' AS TEXT) WHERE position = 3"),
    "replayed without end": (DAMAGED, "UPDATE sessions SET replayed = 9e999"),
    "long traffic": (DAMAGED, "UPDATE sessions SET traffic = hex(zeroblob(10000))"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_strangers_journal(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, what = HOSTILE[name]
    statement, values = what if isinstance(what, tuple) else (what, ())
    for each in statement.split("; ") if name.startswith("endless") else [statement]:
        change(run, each, *values)
    before, target = files(run), service()
    assert main(["journal", "verify", str(run)]) == 1
    assert words in capsys.readouterr().err
    assert main(["journal", "export", str(run), "--out", str(run.parent / "x.npz")]) in (0, 1, 2)
    capsys.readouterr()
    with pytest.raises(ds.UserError, match=NONE if words == NONE else "it is damaged"):
        ds.resume(run, target, queries=120, data=some(10))
    assert target.seen == 0
    assert files(run) == before
    assert main(["journal", "repair", str(run)]) == 0
    done = ds.resume(run, target, queries=120, data=some(10)).result
    assert (done["spent"], done["bill"]["asked_again"]) == (120, 0)
    assert target.seen <= 120


@pytest.mark.parametrize(
    "traffic",
    [
        '{"requests": "a", "statuses": {"200": "x"}}',
        '{"statuses": {"<script>": 1}}',
        '{"requests": 1e999, "waiting": NaN}',
        '{"requests": -5}',
        '{"statuses": [1]}',
        '{"requests": true}',
        "[" * 9000,
        "5",
    ],
)
def test_counts_that_are_none_count_nothing(traffic: str, run: Path) -> None:
    change(run, "UPDATE sessions SET traffic = ?", traffic)
    done = ds.resume(run, service(), queries=120, data=some(10))
    assert done.result["bill"]["requests"] == 10, "those of this session"
    assert done.result["bill"]["statuses"] == {"200": 10}


def test_a_wide_answer_makes_no_huge_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(at, np.full(1, 1.0, np.float32))[1] for at in range(100, 3000)]
    rows.append(row(3000, np.zeros(1 << 20, np.float32))[1])
    with closing(sqlite3.connect(run / "journal.sqlite")) as file, file:
        file.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    assert main(["journal", "export", str(run), "--out", str(run.parent / "x.npz")]) == 2
    assert "no table" in capsys.readouterr().err


def test_what_is_asked_of_a_huge_question_is_bounded(tmp_path: Path) -> None:
    """Of 3 billion images that were begun, the four that are asked about."""
    with Journal(tmp_path / "journal.sqlite", "a") as journal:
        number = journal.begin(ATTACK, 0, HUGE, tells=True)
        journal.sending(number, [(5, HUGE - 10)])
        sent, left = journal.before(ATTACK, 4, 4)
    assert sent.tolist() == [0, 1, 1, 1]
    assert left.tolist() == [True, False, False, False]


def test_a_rollback_of_others_is_not_done(run: Path) -> None:
    """SQLite would write, and delete, what such a file names."""
    (run / "journal.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(1000))
    before = files(run)
    with pytest.raises(ds.UserError, match="none of this program's files"):
        ds.resume(run, service(), queries=120, data=some(10))
    assert main(["journal", "verify", str(run)]) == 0
    assert files(run) == before


spans = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=6)


@given(spans, st.sets(st.integers(0, 50)))
@settings(max_examples=200, deadline=None)
def test_spans_less_others_are_those_of_sets(some_spans: list[tuple[int, int]], held: set[int]) -> None:
    from dualstudent.journal import ranges

    def places(spans: list[tuple[int, int]]) -> list[int]:
        return [at for first, count in spans for at in range(first, first + count)]

    found = _minus(some_spans, ranges(sorted(held)))
    assert places(found) == sorted(set(places(some_spans)) - held)
    assert all(count > 0 for _, count in found)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed with answers in its log, and half a line in its account."""
    code = (
        "import os, sys; from paid_fixture import service; from test_paid import *\n"
        "def die(n):\n    if n == 15: os._exit(9)\n"
        "extract(METHOD, service(before=die), queries=80, out=sys.argv[1])"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = tmp_path_factory.mktemp("killed") / "run"
    command = [sys.executable, "-c", code, str(run)]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}).returncode == 9
    with (run / "attack.account").open("a") as file:
        file.write("9")
    assert (run / "journal.sqlite-wal").stat().st_size
    return run


class TestReadingChangesNothing:
    @pytest.fixture
    def killed(self, left: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(left, tmp_path / "run"))

    @pytest.mark.parametrize("how", ["as it is", "copied", "in a folder that cannot be written"])
    def test_of_a_killed_run(
        self, how: str, killed: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, place = files(killed), str(killed)
        if how == "copied":  # where SQLite cannot read the log
            (killed / "journal.sqlite-shm").mkdir()
            (killed / "journal.sqlite-shm" / "x").touch()
        if how == "in a folder that cannot be written":
            mount = f"mount --bind {place} {place} && mount -o remount,ro,bind {place}"
            inner = f"{sys.executable} -m dualstudent journal verify {place}"
            prove = f"! touch {place}/x 2>/dev/null"
            with suppress(FileNotFoundError):
                if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode == 0:
                    found = subprocess.run(
                        ["unshare", "-m", "sh", "-c", f"{mount} && {prove} && {inner}"],
                        capture_output=True,
                        text=True,
                    )
                    assert (found.returncode, found.stderr) == (0, "")
                    assert "56 of 80 images charged" in found.stdout
                    assert files(killed) == before
                    return
            pytest.skip("nothing can be mounted here")
        assert main(["journal", "verify", place]) == 0
        assert "56 of 80 images charged" in capfd.readouterr().out
        assert files(killed) == before
        with np.load(self._exported(killed)) as arrays:
            assert len(arrays["position"]) == 56
        assert files(killed) == before

    def _exported(self, run: Path) -> Path:
        assert main(["journal", "export", str(run), "--out", str(run.parent / "x.npz")]) == 0
        return run.parent / "x.npz"

    def test_of_a_finished_run(self, run: Path) -> None:
        before = files(run)
        name = json.loads((run / "manifest.json").read_text())["journal"]["run"]
        assert main(["journal", "verify", str(run)]) == 0
        self._exported(run)
        assert files(run) == before
        with Journal(run / "journal.sqlite", name, paid=90):
            assert main(["journal", "verify", str(run)]) == 2, "in use"
