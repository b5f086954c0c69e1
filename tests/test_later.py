"""A service that does not answer now: what left counts as sent, what did not does not, and how to go on."""

import time
from pathlib import Path

import pytest
import torch

from dualstudent.cli import main
from dualstudent.errors import TargetError
from dualstudent.spec import Telling
from dualstudent.targets import ServiceOptions, TargetOptions, open_target
from fault_server import Faulty


def test_a_request_that_waits_for_its_turn_is_not_sent_yet() -> None:
    with Faulty() as server:
        options = TargetOptions(service=ServiceOptions(rate=20.0, request_batch=10, concurrency=4))
        target = open_target(server.url, options).target
        assert isinstance(target, Telling)
        told: list[int] = []
        parts = target.telling(torch.rand(40, 1, 8, 8), lambda places: told.extend(places.tolist()))
        next(parts)
        assert len(told) == 10, "three requests wait for their turn"
        del parts  # nothing more is begun
        time.sleep(0.7)
        assert server.count()["images"] == len(told) == 10


def test_a_request_that_a_pause_holds_is_not_sent_yet() -> None:
    with Faulty(faults={"1": {"status": 503, "headers": {"Retry-After": "2"}}}) as server:
        options = TargetOptions(service=ServiceOptions(request_batch=10, concurrency=1))
        target = open_target(server.url, options).target
        assert isinstance(target, Telling)
        told: list[int] = []
        parts = target.telling(torch.rand(40, 1, 8, 8), lambda places: told.extend(places.tolist()))
        time.sleep(0.3)
        del parts
        assert server.count()["seen"] == 1
        assert told == list(range(10)), "sent, and refused"


def test_a_status_is_known_by_its_number_not_by_words() -> None:
    with Faulty(pages={"/v2": {"status": 404}}) as server:
        assert open_target(server.url).service is not None, "some servers leave their own metadata out"
        server.change(pages={"/v2": {"status": 500, "body": "the gateway saw a status 404"}})
        with pytest.raises(TargetError, match="status 500"):
            open_target(server.url)


def test_only_a_run_can_be_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Faulty(faults={"*": {"status": 503}}) as server:
        asking = ["--retries", "0", "--request-batch", "64"]
        assert main(["target", "check", server.url, *asking]) == 2
        words = capsys.readouterr().err
        assert "does not answer" in words
        assert "resume" not in words
        out = tmp_path / "run"
        more = ["--queries", "100", "--data", "none", "--out", str(out), *asking]
        assert main(["extract", "procedural", "--target", server.url, *more]) == 2
        words = capsys.readouterr().err
        assert "does not answer" in words
        assert words.count(f"dualstudent resume {out}") == 1
