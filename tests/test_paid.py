"""A run against a service: killed anywhere it ends as a quiet one; only what was in flight is paid twice."""

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent import parallel
from dualstudent.data import Images
from dualstudent.defences import LabelOnly, revealed
from dualstudent.desk import Desk
from dualstudent.journal import ATTACK, Journal
from dualstudent.ledger import Account
from dualstudent.oracle import Oracle
from dualstudent.spec import Labels
from dualstudent.targets import ServiceOptions, TargetOptions
from fault_server import Faulty
from paid_fixture import Gone, Paid, service
from test_kill import outcome

extract = partial(ds.extract, probe_every=0)  # probes are asked anew in each session
METHOD = ds.DualStudent(batch=8, width=4, noise_size=8)
BUDGET = 80
Quiet = Callable[[Labels], dict[str, Any]]


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def some(n: int = 30) -> Images:
    """Test images that fit the service's four classes."""
    data = ds.load_data("digits")
    return data[torch.arange(len(data))[data.labels < 4][:n]]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite", "a") as journal:
        yield journal


class TestDesk:
    def test_asks_only_what_is_missing(self, journal: Journal) -> None:
        x, target, account = images(20), service(4), Account("attack")

        def die(n: int) -> None:
            if n == 3:
                raise Gone

        broken = replace(target, before=die, turned=True)
        with pytest.raises(Gone):
            Oracle(broken, account, paid=Desk(journal, broken))(x)
        assert (account.asked, broken.seen, journal.count(ATTACK)) == (20, 8, 8)
        account.rewind(0)
        answer = Oracle(target, account, paid=Desk(journal, target))(x)
        assert torch.equal(answer, target.inner(x))
        assert (account.asked, account.spent, account.asked_again) == (24, 20, 4), "one request was in flight"
        assert target.seen == 12
        attempts = [row.attempts for row in journal.held(ATTACK, 0, 20).values()]
        assert attempts == [1] * 8 + [2] * 4 + [1] * 8

    def test_charges_all_again_where_a_service_does_not_tell(self, journal: Journal) -> None:
        class Silent(Paid):
            telling = None  # type: ignore[assignment]

            def requests(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
                return Paid.telling(self, x, lambda places: None)

        x, account = images(20), Account("attack")

        def die(n: int) -> None:
            if n == 3:
                raise Gone

        target = Silent(Linear(ds.Spec((1, 8, 8), 4)), before=die)
        with pytest.raises(Gone):
            Oracle(target, account, paid=Desk(journal, target))(x)
        account.rewind(0)
        Oracle(target, account, paid=Desk(journal, target))(x)
        assert (account.asked, account.asked_again) == (32, 12)

    def test_keeps_what_a_service_says_below_the_wrappers(self, journal: Journal) -> None:
        x, target = images(6), service()
        hard = LabelOnly(target)
        desk = Desk(journal, target, seen=lambda answer: revealed(hard, answer))
        account = Account("attack")
        first = Oracle(hard, account, paid=desk)(x)
        account.rewind(0)
        again = Oracle(hard, account, paid=desk)(x)
        assert torch.equal(first, hard(x))
        assert torch.equal(again, first)
        kept = np.stack([row.answer for row in journal.held(ATTACK, 0, 6).values()])
        assert torch.equal(torch.from_numpy(kept), target.inner(x))

    def test_keeps_what_a_local_target_says(self, journal: Journal) -> None:
        target, account = Linear(ds.Spec((1, 8, 8), 4)), Account("attack")
        for _ in range(2):
            account.rewind(0)
            Oracle(target, account, paid=Desk(journal, target))(images(6))
        assert (target.seen, account.asked) == (6, 6)

    def test_keeps_rows_of_different_widths(self, journal: Journal) -> None:
        class Growing(Linear):
            def __call__(self, x: Tensor, /) -> Tensor:
                return torch.nn.functional.one_hot(torch.arange(len(x))).float()

        target = Paid(Growing(ds.Spec((1, 8, 8), None, access=ds.Access.LABEL)), 4)
        x, account = images(6), Account("attack")
        first = Oracle(target, account, paid=Desk(journal, target))(x)
        account.rewind(0)
        assert first.shape == (6, 4)
        assert torch.equal(Oracle(target, account, paid=Desk(journal, target))(x), first)

    def test_refuses_other_images_before_asking(self, journal: Journal) -> None:
        target, account = service(), Account("attack")
        Oracle(target, account, paid=Desk(journal, target))(images(8))
        account.rewind(0)
        other = images(12)
        other[5, 0, 3, 3] += 1e-6
        with pytest.raises(
            ds.UserError, match=r"image 5 \(attack\) is not the one .* the run is not the same"
        ):
            Oracle(target, account, paid=Desk(journal, target))(other)
        assert (target.seen, account.asked, account.spent) == (8, 8, 0)

    def test_keeps_no_answer_that_is_none(self, journal: Journal) -> None:
        target, account = service(), Account("attack")

        class Bad(Linear):
            def __call__(self, x: Tensor, /) -> Tensor:
                return super().__call__(x) * (2 if len(x) == 2 else 1)

        bad = Paid(Bad(target.spec))
        with pytest.raises(ds.TargetError, match="no probabilities"):
            Oracle(bad, account, paid=Desk(journal, bad))(images(10))
        assert journal.count(ATTACK) == 8

    @pytest.mark.parametrize(
        ("places", "words"),
        [
            ([0, 1, 2], "1 of 4 images without an answer"),
            ([0, 1, 2, 2], "one twice"),
            ([0, 1, 2, 4], "not asked"),
            ([0, 1, 2, -1], "not asked"),
        ],
    )
    def test_refuses_answers_to_other_questions(
        self, places: list[int], words: str, journal: Journal
    ) -> None:
        class Lost(Paid):
            def telling(self, x: Tensor, sending: Any) -> Iterator[tuple[Tensor, Tensor]]:
                yield torch.tensor(places), self.inner(x)[: len(places)]

        target = Lost(Linear(ds.Spec((1, 8, 8), 4)))
        with pytest.raises(ds.TargetError, match=words):
            Oracle(target, Account("attack"), paid=Desk(journal, target))(images(4))

    def test_does_not_begin_what_the_account_refuses(self, journal: Journal) -> None:
        target, account = service(), Account("attack", 5)
        oracle = Oracle(target, account, paid=Desk(journal, target))
        with pytest.raises(ds.Overdraft):
            oracle(images(6))
        oracle(images(5))
        assert target.seen == 5
        assert {row.attempts for row in journal.held(ATTACK, 0, 5).values()} == {1}

    def test_questions_may_be_answered_in_other_threads(self, journal: Journal) -> None:
        target, found = service(), dict[int, Tensor]()
        desk, x = Desk(journal, target), images(40)
        questions = [desk.question(part, 10 * i) for i, part in enumerate(torch.split(x, 10))]

        def ask(i: int) -> None:
            parts = list(questions[i].parts())
            found[i] = torch.cat([rows for _, rows in parts])

        work = [threading.Thread(target=ask, args=(i,)) for i in (3, 1, 0, 2)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert torch.equal(torch.cat([found[i] for i in range(4)]), target.inner(x))
        assert journal.count(ATTACK) == 40


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    """Return what gives what a run ends with that nothing disturbs."""

    @cache
    def quiet(labels: Labels) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("quiet") / labels
        run = extract(METHOD, service(), queries=BUDGET, out=out, labels=labels, data=some())
        assert (run.result["bill"]["asked"], run.result["bill"]["asked_again"]) == (BUDGET, 0)
        assert run.result["bill"]["audit"] == 30
        return outcome(out)

    return quiet


@pytest.mark.parametrize("labels", [pytest.param("soft", marks=pytest.mark.slow), "hard"])
def test_killed_many_times_it_ends_the_same(labels: Labels, quiet: Quiet, tmp_path: Path) -> None:
    """At the fifth request of each session, before or after it is answered; answers come in any order."""
    out, target, kills = tmp_path / "run", service(4), 0

    def die(n: int) -> None:
        if n % 5 == 0:
            raise Gone

    while not (out / "result.json").exists():
        target = replace(target, traffic=ds.Traffic(), turned=kills % 2 == 1)
        target.before, target.after = (die, lambda n: None) if kills % 2 else (lambda n: None, die)
        try:
            if kills == 0:
                options: dict[str, Any] = {"labels": labels, "data": some(), "snapshot_every": 0.0}
                extract(METHOD, target, queries=BUDGET, out=out, **options)
            else:
                ds.resume(out, target, data=some())
        except Gone:
            kills += 1
            assert kills < 100
    assert outcome(out) == quiet(labels)
    bill = json.loads((out / "result.json").read_text())["bill"]
    assert bill["unique"] == BUDGET
    answered = sum(target.answered.values())
    assert answered <= bill["asked"] + bill["audit"]
    assert bill["asked"] + bill["audit"] - (BUDGET + 30) <= 4 * kills, "one request was in flight at each"
    assert bill["asked"] == BUDGET + bill["asked_again"]
    assert bill["asked_again"] > 0
    assert bill["audit"] > 30
    assert bill["from_journal"] > 0


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_prices_that_are_none(price: float, tmp_path: Path) -> None:
    with pytest.raises(ds.UserError, match="--price"):
        extract(METHOD, service(), queries=40, out=tmp_path / "r", price=price)


def test_journal_is_for_services_unless_told(tmp_path: Path) -> None:
    local = Linear(ds.Spec((1, 8, 8), 4))
    for name, target, wish, kept in (
        ("a", local, None, False),
        ("b", local, True, True),
        ("c", service(), None, True),
        ("d", service(), False, False),
    ):
        run = extract(METHOD, target, queries=40, out=tmp_path / name, journal=wish)
        manifest = json.loads((run.path / "manifest.json").read_text())
        assert (manifest["journal"] is not None) == (run.path / "journal.sqlite").exists() == kept
        bill = run.result["bill"]
        assert (bill["asked"], bill["asked_again"], bill["unique"]) == (40, 0, 40)
        assert bill["from_journal"] == (0 if kept else None)
        assert bill["requests"] == ({"b": 0, "c": 10}.get(name))


def test_extended_judged_and_taken_up_again(tmp_path: Path) -> None:
    target = service()
    run = extract(METHOD, target, queries=40, out=tmp_path / "r", price=1.5)
    assert target.seen == 40
    assert run.result["bill"]["price"] == 0.06
    ds.evaluate(run.path, some(), target)
    ds.evaluate(run.path, some(), target)
    assert target.seen == 70
    longer = ds.resume(run.path, target, queries=80)
    assert (longer.result["bill"]["asked"], longer.result["bill"]["audit"], target.seen) == (80, 30, 110)
    assert longer.result["bill"]["price"] == round(1.5 * (80 + 30) / 1000, 6)
    assert longer.result["bill"]["requests"] == target.traffic.requests


class TestRefused:
    """Before anything more is asked; what is there is left as it is."""

    @pytest.fixture
    def stopped(self, tmp_path: Path) -> Path:
        with pytest.raises(ds.Stopped):
            extract(METHOD, service(), queries=400, out=tmp_path / "r", stop=lambda: True)
        return tmp_path / "r"

    def refuse(self, run: Path, words: str) -> None:
        target = service()
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "journal.sqlite"}
        with pytest.raises(ds.UserError, match=words):
            ds.resume(run, target)
        assert target.seen == 0
        assert {p: p.read_bytes() for p in before} == before

    def test_without_its_journal(self, stopped: Path) -> None:
        (stopped / "journal.sqlite").unlink()
        self.refuse(stopped, "journal.sqlite is missing, and 40 images are paid")

    def test_with_another_runs_journal(self, stopped: Path, tmp_path: Path) -> None:
        other = extract(METHOD, service(), queries=40, out=tmp_path / "other")
        shutil.copyfile(other.path / "journal.sqlite", stopped / "journal.sqlite")
        self.refuse(stopped, "another run's journal")

    def test_with_fewer_answers_than_the_snapshot_has_learnt(self, stopped: Path) -> None:
        with sqlite3.connect(stopped / "journal.sqlite") as file:
            file.execute("DELETE FROM answers WHERE position = 5")
        file.close()
        self.refuse(stopped, "39 of the 40 answers")

    def test_with_several_ranks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parallel, "world", lambda: 2)
        with pytest.raises(ds.UserError, match="one process, here are 2 ranks: start without torchrun"):
            extract(METHOD, service(), queries=400, out=tmp_path / "r")
        assert not (tmp_path / "r").exists()


def test_a_journal_that_fails_ends_the_question_of_a_real_service(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over real sockets: what is in flight is finished, what is queued is never sent."""
    with Faulty(delay=0.05) as server:
        options = TargetOptions(service=ServiceOptions(request_batch=4, concurrency=2))
        target = ds.open_target(server.url, options).target
        oracle = Oracle(target, Account("attack"), paid=Desk(journal, target))
        oracle(images(16))
        monkeypatch.setattr(Journal, "record", lambda *words, **more: _full())
        with pytest.raises(ds.UserError, match="disk is full"):
            oracle(images(80))
        time.sleep(0.3)
        count = server.count()["images"]
        time.sleep(0.3)
        assert count == server.count()["images"] < 16 + 40


def _full() -> None:
    raise ds.UserError("the disk is full")
