"""Any sequence of questions, faults, kills and restarts, against a model of what was paid and answered."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import dualstudent as ds
from dualstudent.desk import Desk
from dualstudent.journal import ATTACK, Journal, salvage
from dualstudent.ledger import Account
from dualstudent.oracle import Oracle
from paid_fixture import Gone, Paid, service
from test_kill import outcome
from test_paid import BUDGET, METHOD, Quiet, extract, quiet, some

SIZE = 3  # images of a request
assert quiet  # a fixture


@dataclass(frozen=True)
class Disaster:
    """What happens at a request of a session: the tool is killed before or after it, or it fails."""

    kind: str  # kill before, kill after, fails, lies
    request: int  # of the session, from 1


class Broken(Paid):
    """A service to which a disaster happens."""

    disaster: Disaster | None = None
    requested = 0

    def telling(self, x: Tensor, sending: Callable[[Tensor], None]) -> Any:
        for at, answers in Paid.telling(self, x, sending):
            yield at, answers * 2 if self.now("lies", self.requested) else answers

    def now(self, kind: str, request: int) -> bool:
        return self.disaster == Disaster(kind, request)

    def watch(self, n: int) -> None:
        self.requested += 1
        if self.now("kill before", self.requested):
            raise Gone
        if self.now("fails", self.requested):
            raise ds.TargetError("the service says 500")

    def watched(self, n: int) -> None:
        if self.now("kill after", self.requested):
            raise Gone


class World:
    """A run's files, a service, and what the model knows of both."""

    def __init__(self, place: Path) -> None:
        self.place, self.session, self.answered = place, 0, Counter[int]()
        self.history: list[int] = []  # images of each question
        self.snapshot = 0  # questions that the snapshot has learnt
        self.most = 0  # images in flight at kills and failures, in all
        self.images = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        self.truth = service(SIZE).inner(self.images)
        self.kept: dict[int, bytes] = {}
        self.open()

    def open(self) -> None:
        """Begin a session, as `resume` does: from the files alone, at the snapshot."""
        folder = self.place / str(self.session)
        folder.mkdir(exist_ok=True)
        self.account = Account("attack", path=folder / "attack.account")
        self.journal = Journal(folder / "journal.sqlite", "run", paid=self.account.asked)
        self.account.rewind(sum(self.history[: self.snapshot]))
        self.journal.whole(self.account.spent)
        self.service = Broken(service(SIZE).inner, SIZE, turned=self.session % 2 == 1)
        self.service.before, self.service.after = self.service.watch, self.service.watched

    def die(self) -> None:
        """Take what is on disk at this moment into the next session, and nothing else."""
        before, after = self.place / str(self.session), self.place / str(self.session + 1)
        shutil.copytree(before, after)
        self.journal.close()
        self.session += 1
        self.open()

    def ask(self, question: int) -> None:
        """Ask a question of the history, as the state at the snapshot leads to it."""
        first = sum(self.history[:question])
        assert self.account.spent == first
        x = self.images[first : first + self.history[question]]
        desk = Desk(self.journal, self.service)
        try:
            answer = Oracle(self.service, self.account, paid=desk)(x)
        finally:
            for image, times in self.service.answered.items():
                at = next(i for i in range(len(x)) if x[i].numpy().tobytes() == image)
                self.answered[first + at] += times
            self.service.answered.clear()
        assert torch.equal(answer, self.truth[first : first + len(x)])

    def go(self, images: int, disaster: Disaster | None) -> None:
        """Ask one more question; where that ends in a disaster, resume until it is answered."""
        self.history.append(images)
        self.service.disaster, self.service.requested = disaster, 0
        while True:
            try:
                done = sum(1 for end in self.ends() if end <= self.account.spent)
                for question in range(done, len(self.history)):
                    self.ask(question)
                    self.check()
                return
            except (Gone, ds.TargetError):
                self.most += SIZE
                self.die()
                self.check()

    def ends(self) -> list[int]:
        """Return the images asked when each question is."""
        return [sum(self.history[: i + 1]) for i in range(len(self.history))]

    def check(self) -> None:
        """Hold what is on disk against the model."""
        held = self.journal.held(ATTACK, 0, 400)
        assert all(self.answered[at] >= 1 for at in held), "no answer that was not given"
        for at, row in held.items():
            assert row.answer.tobytes() == self.truth[at].numpy().tobytes()
            assert self.kept.setdefault(at, row.digest) == row.digest
        assert set(self.kept) <= set(held), "what was on disk once stays"
        total = sum(self.answered.values())
        assert total - len(held) <= self.most, "all but what was in flight is on disk"
        assert total <= self.account.asked, "nothing is asked that is not charged"
        assert self.account.asked <= sum(self.history) + self.most, "and little is charged in vain"


disasters = st.builds(
    Disaster, st.sampled_from(["kill before", "kill after", "fails", "lies"]), st.integers(1, 5)
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 13), st.none() | disasters),
        st.tuples(st.just("snapshot"), st.none(), st.none()),
        st.tuples(st.just("kill"), st.none(), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_nothing_that_was_paid_is_lost_and_only_what_was_in_flight_is_paid_again(steps: Any) -> None:
    play(steps)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_the_same_with_many_more_sequences(steps: Any) -> None:
    play(steps)


def play(steps: Any) -> None:
    """Do what a sequence says, and hold the files against the model after each step of it."""
    with tempfile.TemporaryDirectory() as place:
        world = World(Path(place))
        try:
            for what, images, disaster in steps:
                if what == "ask":
                    world.go(images, disaster)
                elif what == "snapshot":
                    world.snapshot = len(world.history)
                else:
                    world.die()
                    world.go(1, None)  # replays what the snapshot has not
                world.check()
        finally:
            world.journal.close()
        found = salvage(world.journal.path)
        assert found.problems == []
        assert [row.position for row in found.rows] == list(range(sum(world.history)))
        assert found.begun == []


sessions = st.lists(st.tuples(st.sampled_from(["before", "after"]), st.integers(1, 14)), max_size=6)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(kills=sessions, labels=st.sampled_from(["soft", "hard"]), every=st.sampled_from([0.0, 100.0]))
def test_students_are_those_of_a_quiet_run(
    kills: Any,
    labels: Any,
    every: float,
    quiet: Quiet,
) -> None:
    def die_at(number: int) -> Callable[[int], None]:
        def die(n: int) -> None:
            if n == number:
                raise Gone

        return die

    with tempfile.TemporaryDirectory() as place:
        out, dead = Path(place) / "run", 0
        for kind, number in [*kills, ("never", 0)]:
            target = replace(service(4), turned=number % 2 == 1)
            if kind != "never":
                setattr(target, kind, die_at(number))
            try:
                if not out.exists():
                    options: dict[str, Any] = {"labels": labels, "snapshot_every": every}
                    extract(METHOD, target, queries=BUDGET, out=out, data=some(), **options)
                else:
                    ds.resume(out, target, data=some())
                break
            except Gone:
                dead += 1
        assert outcome(out) == quiet(labels)
        bill = json.loads((out / "result.json").read_text())["bill"]
        assert bill["asked"] + bill["audit"] <= BUDGET + 30 + 4 * dead
