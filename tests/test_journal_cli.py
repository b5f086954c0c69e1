"""`dualstudent journal verify | export | repair`: what it finds, what it keeps, and its exit codes."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dualstudent as ds
from dualstudent.cli import main
from dualstudent.journal import Journal
from paid_fixture import Gone, Paid, service
from test_paid import METHOD, extract, some


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("journals") / "run"
    return extract(METHOD, service(), queries=80, out=out, data=some()).path


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """A finished run of 80 queries with 30 test images."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, Paid]:
    """A run killed at its 15th request, 56 images journalled, 40 of them in the snapshot."""
    target = service()

    def die(n: int) -> None:
        if n == 15:
            raise Gone

    target.before = die
    with pytest.raises(Gone):
        extract(METHOD, target, queries=80, out=tmp_path / "run", snapshot_every=0.0)
    target.before = lambda n: None
    return tmp_path / "run", target


def change(run: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(run / "journal.sqlite")) as file, file:
        file.execute(statement, values)


class Said:
    """What a command printed: all of it, and what was wrong."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        captured = capsys.readouterr()
        self.out, self.wrong = captured.out, captured.err


def test_a_whole_journal(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "journal.sqlite").read_bytes()
    assert main(["journal", "verify", str(finished)]) == 0
    said = Said(capsys)
    assert "80 of 80 images charged" in said.out
    assert "30 of 30 images charged" in said.out
    assert not said.wrong
    assert main(["journal", "repair", str(finished)]) == 2
    assert "nothing to repair" in Said(capsys).wrong
    assert (finished / "journal.sqlite").read_bytes() == before


def test_a_killed_runs_journal_is_whole(
    killed: tuple[Path, Paid], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was in flight is missing, and nothing is wrong with that."""
    run, target = killed
    assert main(["journal", "verify", str(run)]) == 0
    said = Said(capsys)
    assert "56 of 80 images charged" in said.out
    assert "24" in said.out.split("begun and not answered")[1].splitlines()[0]
    ds.resume(run, target)
    assert main(["journal", "verify", str(run)]) == 0
    assert "80 of 84 images charged" in Said(capsys).out


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: change(run, "DELETE FROM answers WHERE position IN (3, 4, 5, 9)"), "images 3 … 5, 9"),
        (
            lambda run: change(run, "UPDATE answers SET answer = zeroblob(16) WHERE position = 7"),
            "sums do not",
        ),
        (lambda run: change(run, "UPDATE answers SET position = 999 WHERE position = 79"), "sums do not fit"),
        (lambda run: change(run, "UPDATE meta SET value = 'x' WHERE name = 'run'"), "another run's"),
        (lambda run: change(run, "UPDATE meta SET value = 'x' WHERE name = 'format'"), "no journal of this"),
        (
            lambda run: change(run, "DELETE FROM answers WHERE purpose != 'attack'"),
            "30 answers on test images",
        ),
        (lambda run: (run / "attack.account").write_text("79\n"), "80 answers to the attack, but 79 images"),
        (lambda run: (run / "audit.account").write_text("29\n"), "30 answers to the audit, but 29 images"),
        (lambda run: _relabel(run), "learnt with another class"),
        (lambda run: _results(run, unique=79), "79 unique images, here are 80"),
        (lambda run: _results(run, spent=90), "90 images were spent, 80 of"),
        (lambda run: _cut(run), "malformed|cannot be read|disk image|not in database"),
    ],
    ids="gap answer position run format audit charged audited labels unique spent truncated".split(),
)
def test_what_is_wrong_is_found(
    spoil: Callable[[Path], object], words: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(finished)
    assert main(["journal", "verify", str(finished)]) == 1
    said = Said(capsys)
    assert any(__import__("re").search(words, line) for line in said.wrong.splitlines())
    assert "whole" not in said.out


def _relabel(run: Path) -> None:
    raw = bytearray((run / "shown.bin").read_bytes())
    raw[8] ^= 1
    (run / "shown.bin").write_bytes(raw)


def _results(run: Path, **changes: int) -> None:
    values = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(values | changes))


def _cut(run: Path) -> None:
    raw = (run / "journal.sqlite").read_bytes()
    (run / "journal.sqlite").write_bytes(raw[: len(raw) - 4096])


@pytest.mark.parametrize(("flags", "kept"), [([], False), (["--journal"], True), (["--no-journal"], False)])
def test_the_flags_are_in_the_manifest(
    flags: list[str], kept: bool, digits_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["extract", "dual-student", "--target", str(digits_target), "--queries", "40", "--batch", "8"]
    more = ["--width", "4", "--noise-size", "8", "--data", "none", "--price", "2"]
    assert main([*words, *more, "--out", str(tmp_path / "run"), *flags]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["journal"] is not None) == kept
    assert (tmp_path / "run" / "journal.sqlite").exists() == kept
    assert "0.08" in Said(capsys).out.split("price")[1].splitlines()[0]
    assert main(["journal", "verify", str(tmp_path / "run")]) == (0 if kept else 2)


def test_another_process_at_work_is_left_alone(
    killed: tuple[Path, Paid], capsys: pytest.CaptureFixture[str]
) -> None:
    run, target = killed
    name = json.loads((run / "manifest.json").read_text())["journal"]["run"]
    seen = target.seen
    words = "another process is using it"
    with Journal(run / "journal.sqlite", name, paid=80), pytest.raises(ds.UserError, match=words):
        ds.resume(run, target)
    assert target.seen == seen


def test_what_cannot_be_verified(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = extract(METHOD, service(), queries=40, out=tmp_path / "local", journal=False)
    name = json.loads((finished / "manifest.json").read_text())["journal"]["run"]
    with Journal(finished / "journal.sqlite", name, paid=80):
        assert main(["journal", "verify", str(finished)]) == 2
        assert "another process is using it" in Said(capsys).wrong
    for words, told in (
        (["verify", str(tmp_path / "none")], "holds no run"),
        (["verify", str(local.path)], "keeps no journal"),
        (["export", str(local.path), "--out", str(tmp_path / "x.npz")], "keeps no journal"),
        (["export", str(finished), "--out", str(tmp_path / "x.csv")], "ends in .npz"),
        (["verfy", str(finished)], "did you mean 'verify'"),
    ):
        assert main(["journal", *words]) == 2
        wrong = Said(capsys).wrong
        assert told in wrong
        assert len(wrong.strip().splitlines()) == 1


def test_exported_answers_are_those_of_the_service(finished: Path, tmp_path: Path) -> None:
    assert main(["journal", "export", str(finished), "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as arrays:
        attack = arrays["purpose"] == "attack"
        assert arrays["position"][attack].tolist() == list(range(80))
        assert (~attack).sum() == 30
        assert arrays["answer"].shape == (110, 4)
        assert arrays["digest"].shape == (110, 16)
        assert len(np.unique(arrays["digest"][attack], axis=0)) == 80
        assert set(arrays["attempts"]) == {1}
        assert (np.diff(arrays["time"][attack]) >= 0).all()
        result = json.loads((finished / "result.json").read_text())
        classes, counts = np.unique(arrays["answer"][attack].argmax(1), return_counts=True)
        assert {str(c): int(n) for c, n in zip(classes, counts, strict=True)} == result["histogram"]
    assert main(["journal", "export", str(finished), "--out", str(tmp_path / "x.npz")]) == 0
    (tmp_path / "mine.npz").write_text("not yours")
    assert main(["journal", "export", str(finished), "--out", str(tmp_path / "mine.npz")]) == 2
    assert (tmp_path / "mine.npz").read_text() == "not yours"


@pytest.fixture
def long(tmp_path: Path) -> Iterator[tuple[Path, Paid]]:
    """A killed run whose journal fills many pages, with two thirds of it in the snapshot."""
    target = service(8)

    def die(n: int) -> None:
        if n == 100:
            raise Gone

    target.before = die
    with pytest.raises(Gone):
        extract(METHOD, target, queries=1000, out=tmp_path / "run", snapshot_every=0.0, points=1)
    target.before = lambda n: None
    return tmp_path / "run", target  # type: ignore[return-value]


def test_of_a_damaged_file_the_rest_is_kept(
    long: tuple[Path, Paid], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page in the middle is gone: both sides of it are exported, repaired, and gone on from."""
    run, target = long
    assert main(["journal", "verify", str(run)]) == 0  # moves the log into the file
    file = run / "journal.sqlite"
    raw = file.read_bytes()
    file.write_bytes(raw[: 4096 * 8] + b"\xff" * 4096 + raw[4096 * 9 :])
    seen = target.seen
    with pytest.raises(ds.UserError, match="damaged"):
        ds.resume(run, target)
    assert target.seen == seen
    capsys.readouterr()
    assert main(["journal", "export", str(run), "--out", str(tmp_path / "x.npz")]) == 1
    assert "cannot be read" in Said(capsys).wrong
    with np.load(tmp_path / "x.npz") as arrays:
        kept = len(arrays["position"])
    assert 400 < kept < 99 * 8
    assert main(["journal", "repair", str(run)]) == 0
    assert (run / "journal.sqlite.damaged").exists()
    capsys.readouterr()
    done = ds.resume(run, target)
    assert done.result["complete"]
    lost = 99 * 8 - kept
    assert done.result["bill"]["asked_again"] <= lost + METHOD.queries_per_step
    assert main(["journal", "verify", str(run)]) == 1
    assert "repaired" in Said(capsys).out


def test_a_lost_journal_can_be_given_up(
    killed: tuple[Path, Paid], capsys: pytest.CaptureFixture[str]
) -> None:
    """Then only what the snapshot has not learnt is asked again, and shown in the bill."""
    run, target = killed
    (run / "journal.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(ds.UserError, match="no journal"):
        ds.resume(run, target)
    assert main(["journal", "repair", str(run)]) == 0
    done = ds.resume(run, target)
    assert done.result["bill"]["asked_again"] == 40
    quiet = extract(METHOD, service(), queries=80, out=run.parent / "quiet")
    assert torch.equal(*(r.clone(some().pixels()[:2].float()) for r in (done, quiet)))
