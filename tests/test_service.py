"""A service over real sockets: what it answers is what is learnt from, and failures are asked again."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dualstudent as ds
from dualstudent.defences import LabelOnly
from dualstudent.errors import Later, Stopped, TargetError
from dualstudent.ledger import Account
from dualstudent.spec import Service
from dualstudent.targets import Opened, ServiceOptions, TargetOptions, open_target
from fault_server import Faulty

QUICK: dict[str, Any] = {"pause": 0.01, "timeout": 2.0}


def images(n: int = 40, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def opened(server: Faulty, url: str | None = None, **options: Any) -> Opened:
    """Open a server's model; options of a target by name, others are the service's."""
    mine = {name: options.pop(name) for name in list(options) if name in vars(TargetOptions())}
    return open_target(url or server.url, TargetOptions(service=ServiceOptions(**QUICK | options), **mine))


def rows(server: Faulty, x: Tensor) -> Tensor:
    return torch.from_numpy(server.model(x.numpy()))


def until(parts: Iterator[tuple[Tensor, Tensor]], error: type[Exception], words: str) -> list[int]:
    """Return the first position of each part that comes before an error."""
    found: list[int] = []
    with pytest.raises(error, match=words):
        found.extend(int(places[0]) for places, _ in parts)
    return found


@pytest.fixture(scope="module")
def quiet() -> Iterator[Faulty]:
    """A server without faults."""
    with Faulty() as server:
        yield server


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("batch", "concurrency"), [(1, 3), (7, 1), (7, 4), (64, 4)])
def test_answers_in_the_order_of_the_images(
    quiet: Faulty, binary: bool, batch: int, concurrency: int
) -> None:
    target = opened(quiet, binary=binary, request_batch=batch, concurrency=concurrency).target
    assert isinstance(target, Service)
    assert target.spec == ds.Spec((1, 8, 8), 4)
    x = images()
    account = Account("attack")
    assert torch.equal(ds.Oracle(target, account)(x), rows(quiet, x))
    assert account.spent == 40
    assert target.traffic.requests == 4 + -(-40 // batch), "health, metadata of server and model, readiness"
    assert target.traffic.statuses == {"200": target.traffic.requests}


def test_every_fault_that_may_pass_is_asked_again() -> None:
    faults = {
        "1": {"status": 503, "headers": {"Retry-After": "0"}},
        "2": {"reset": "before"},
        "3": {"reset": "after"},
        "4": {"cut": 10},
        "5": {"wait": 2.6},
        "6": {"status": 429},
        "7": {"status": 502, "body": "<html>bad gateway</html>"},
        "8": {"status": 504},
        "9": {"drip": 0.1},
    }
    with Faulty(faults=faults) as server:
        target = opened(server, request_batch=5, concurrency=4, timeout=2.0).target
        x = images()
        assert torch.equal(target(x), rows(server, x))
        assert isinstance(target, Service)
        time.sleep(1.0)  # the late one is computed, too late
        traffic, count = target.traffic, server.count()
    failed = {"503": 1, "429": 1, "502": 1, "504": 1, "timeout": 2, "reset": 3}
    assert traffic.statuses == failed | {"200": 4 + 8}
    assert traffic.retried == 9
    assert traffic.failed_images == 45
    assert traffic.broken_off == 35, "all but those refused with 503 and 429"
    assert count["seen"] == 8 + 9
    assert count["images"] == 40 + 4 * 5, "late, cut, slow and reset ones were computed too"
    assert 0 < traffic.waiting < 10


def test_answers_that_overtake_each_other_are_yielded_as_they_come() -> None:
    with Faulty(faults={"1": {"wait": 0.5}}) as server:
        target = opened(server, request_batch=10, concurrency=2).target
        assert isinstance(target, Service)
        x = images()
        parts = list(target.requests(x))
        expected = rows(server, x)
    assert int(parts[-1][0][0]) in (0, 10), "one of the two that were sent first"
    assert sorted(int(place) for places, _ in parts for place in places) == list(range(40))
    for places, answer in parts:
        assert torch.equal(answer, expected[places])


def test_one_failure_does_not_lose_the_others() -> None:
    """What is under way when a request is refused for good is waited for, and yielded."""
    with Faulty(
        faults={"1": {"wait": 0.3}, "2": {"wait": 0.1, "status": 400, "body": '{"error": "no"}'}}
    ) as server:
        target = opened(server, request_batch=10, concurrency=2).target
        assert isinstance(target, Service)
        found = until(target.requests(images()), TargetError, "status 400: no")
        assert len(found) == 1, "the other one; the third and fourth were not begun"
        assert server.count()["seen"] == 2


def test_the_machine_works_while_answers_are_awaited() -> None:
    with Faulty(delay=0.1) as server:
        target = opened(server, request_batch=10, concurrency=1).target
        assert isinstance(target, Service)
        x = images(60)
        account = Account("attack")
        answers = ds.Oracle(target, account).begin(list(torch.split(x, 20)))
        assert account.spent == 60, "charged before anything is awaited"
        found = []
        for answer in answers:
            found.append(answer)
            time.sleep(0.18)
        assert torch.equal(torch.cat(found), rows(server, x))
    assert target.traffic.waiting < 0.45, "the first batch is waited for; the rest comes while others work"


def test_labels_of_a_service_keep_the_rest_of_it_hidden(quiet: Faulty) -> None:
    x = images()
    oracle = ds.Oracle(LabelOnly(opened(quiet, request_batch=9).target), Account("attack"))
    answers = torch.cat(list(oracle.begin(list(torch.split(x, 16)))))
    assert torch.equal(answers, torch.nn.functional.one_hot(rows(quiet, x).argmax(1), 4).float())


def test_a_run_that_is_to_stop_waits_for_what_is_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualstudent.targets.transport.GRACE", 0.2)
    again = {"status": 503, "headers": {"Retry-After": "600"}}
    with Faulty(faults={"1": {"wait": 0.6}, "2": again}) as server:
        target = opened(server, request_batch=10, concurrency=2).target
        assert isinstance(target, Service)
        wish = threading.Event()
        target.heed(wish.is_set)  # type: ignore[attr-defined]
        threading.Timer(0.1, wish.set).start()
        start = time.monotonic()
        found = until(target.requests(images()), Stopped, "stopped")
        assert time.monotonic() - start < 5
        assert len(found) == 1, "one was under way, and paid; the other's pause is given up"
        assert server.count()["images"] == 10


class TestRate:
    @pytest.mark.parametrize(("rate", "batch", "concurrency"), [(400.0, 5, 4), (300.0, 20, 2)])
    def test_is_obeyed_within_two_percent(
        self, quiet: Faulty, rate: float, batch: int, concurrency: int
    ) -> None:
        target = opened(quiet, rate=rate, request_batch=batch, concurrency=concurrency).target
        x = images(600)
        target(x[:batch])
        start = time.monotonic()
        for part in torch.split(x, 200):  # the pauses between questions count
            target(part)
        took = time.monotonic() - start
        assert 600 / took == pytest.approx(rate, rel=0.02)

    def test_images_asked_again_count(self) -> None:
        """Some of the requests are refused: what is sent keeps the rate, not only what is answered."""
        often = {str(number): {"status": 429} for number in range(3, 200, 5)}
        with Faulty(faults=often) as server:
            target = opened(server, rate=400.0, request_batch=10, concurrency=4).target
            target(images(10))
            start = time.monotonic()
            target(images(600))
            took = time.monotonic() - start
            sent = server.count()["seen"] - 1
            assert isinstance(target, Service)
            assert target.traffic.statuses["429"] == sent - 60 > 10
        assert 10 * sent / took == pytest.approx(400, rel=0.02)

    def test_retry_after_holds_all_requests(self) -> None:
        with Faulty(faults={"1": {"status": 429, "headers": {"Retry-After": "1"}}}) as server:
            target = opened(server, request_batch=10, concurrency=1).target
            start = time.monotonic()
            target(images())
            assert 1.0 <= time.monotonic() - start < 2.0


def test_a_service_that_stays_down_says_how_to_go_on() -> None:
    with Faulty(faults={"*": {"status": 503}}) as server:
        target = opened(server, retries=3, concurrency=1, request_batch=40).target
        with pytest.raises(Later, match=r"does not answer \(tried 4 times, .*503\)$"):
            target(images())
        assert server.count()["seen"] == 4
    with pytest.raises(Later, match=r"does not answer"):
        target(images())
    with pytest.raises(Later, match=r"does not answer \(.*\)$"):
        opened(server)


def test_a_long_pause_is_not_sat_out() -> None:
    with Faulty(faults={"1": {"status": 503, "headers": {"Retry-After": "36000"}}}) as server:
        target = opened(server).target
        with pytest.raises(TargetError, match=r"asks to wait 10.0 hours"):
            target(images())


def test_numpy_sees_what_torch_sees(quiet: Faulty) -> None:
    """The test's model does not depend on the batch: otherwise equality would prove nothing."""
    x = images().numpy()
    assert np.array_equal(quiet.model(x), np.concatenate([quiet.model(x[i : i + 1]) for i in range(40)]))
