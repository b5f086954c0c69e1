"""No service holds a request longer than --timeout, or makes us read what it does not answer."""

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dualstudent as ds
from dualstudent.errors import TargetError
from dualstudent.targets import ServiceOptions, TargetOptions, open_target
from rough_service import rough

HEAD = b"HTTP/1.1 200 OK\r\n"


def again_and_again(start: bytes, more: bytes, pause: float = 0.05) -> Callable[[socket.socket], None]:
    """Return what writes something, then something else until the other end is gone."""

    def write(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(more)
            time.sleep(pause)

    return write


def opened(url: str, **options: object) -> ds.Target:
    quick = {"timeout": 0.4, "retries": 1, "pause": 0.01} | options
    return open_target(url, TargetOptions(service=ServiceOptions(**quick))).target  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(again_and_again(HEAD + b"X: ", b"a"), id="a header without an end"),
        pytest.param(again_and_again(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), id="never more than a start"),
        pytest.param(again_and_again(HEAD + b"Content-Length: 9999\r\n\r\n", b" "), id="a body in drops"),
        pytest.param(
            again_and_again(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"), id="chunks"
        ),
        pytest.param(again_and_again(b"", b"\r\n"), id="lines before a status"),
    ],
)
def test_a_request_is_over_in_time(write: Callable[[socket.socket], None]) -> None:
    with rough(write) as url:
        target = opened(url)
        start = time.monotonic()
        with pytest.raises(
            TargetError, match=r"does not answer \(tried 2 times.*(no answer in 0.4 s|cut off)"
        ):
            target(torch.rand(4, 1, 8, 8))
        assert time.monotonic() - start < 3


def test_a_service_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        from dualstudent.targets.transport import Transport

        transport = Transport(
            ServiceOptions(timeout=0.4, retries=0), f"http://127.0.0.1:{deaf.getsockname()[1]}"
        )
        start = time.monotonic()
        with pytest.raises(TargetError, match=r"no answer in 0.4 s"):
            transport.ask("/", content=bytes(50_000_000), images=1, limit=1000)
        assert time.monotonic() - start < 2
        transport.close()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_lies_behind_a_packed_answer_is_not_read(coding: str) -> None:
    packed = gzip.compress(b"{}") if coding == "gzip" else b"x\x9c\xab\xae\x05\x00\x01u\x00\xf9"
    chunk = b"%x\r\n" % len(packed) + packed + b"\r\n"
    head = HEAD + f"Content-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with rough(again_and_again(head + chunk, b"400\r\n" + bytes(1024) + b"\r\n", pause=0.001)) as url:
        target = opened(url, timeout=20.0)
        with pytest.raises(TargetError, match="more behind a packed answer"):
            target(torch.rand(4, 1, 8, 8))


def test_the_second_signal_ends_a_run_that_waits(tmp_path: Path) -> None:
    """The service never answers, and may take its time for that: the user need not."""
    there = threading.Event()

    def write(connection: socket.socket) -> None:
        there.set()
        connection.recv(1)

    with rough(write) as url:
        command = [
            sys.executable,
            "-m",
            "dualstudent",
            "extract",
            "procedural",
            "--target",
            url,
            "--data",
            "none",
        ]
        command += [
            "--queries",
            "200",
            "--timeout",
            "600",
            "--probe-every",
            "0",
            "--out",
            str(tmp_path / "run"),
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
        try:
            assert there.wait(60)
            process.send_signal(signal.SIGTERM)
            time.sleep(1.2)
            process.send_signal(signal.SIGTERM)
            _, words = process.communicate(timeout=15)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert "resume" in words
