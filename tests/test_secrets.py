"""Secrets of a run that is gone on with: its names are never used by themselves, and the hints say them."""

import json
import os
import shlex
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualstudent.cli import main
from fault_server import Faulty

TOKEN = "a-token-of-the-user-60351"
OTHER = "another-secret-of-the-user-88214"
RUN = ["--width", "8", "--noise-size", "16", "--batch", "16", "--points", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def server() -> Iterator[Faulty]:
    with Faulty(token=TOKEN, model={"classes": 10}) as made:
        yield made


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    path = tmp_path / "my headers"
    path.write_text(f"X-Api-Key: {OTHER}\n")
    return path


def extract(server: Faulty, out: Path, *more: str) -> int:
    command = ["extract", "dual-student", "--target", server.url, "--queries", "100", "--out", str(out)]
    return main([*command, *RUN, *more])


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    """Where a stranger waits for secrets: nobody may come."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_a_strangers_run_gets_no_secret_of_the_user(
    server: Faulty,
    stranger: socket.socket,
    headers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, port = tmp_path / "run", stranger.getsockname()[1]
    assert extract(server, out, "--token-env", "MY_TOKEN") == 0
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["target"]["reference"] = f"http://127.0.0.1:{port}/v2/models/toy"
    manifest["target"]["options"]["service"]["headers_file"] = str(headers)
    commands = (
        ["resume", str(out), "--queries", "200"],
        ["evaluate", str(out), "--data", "digits"],
        ["transfer", str(out), "--data", "digits"],
    )
    for names in ({"token_env": "MY_TOKEN"}, {"token_env": None, "token_file": str(headers)}):
        manifest["target"]["options"]["service"] |= names
        (out / "manifest.json").write_text(json.dumps(manifest))
        token = "--token-env MY_TOKEN" if names["token_env"] else f"--token-file '{headers}'"
        for command in commands:
            capsys.readouterr()
            assert main(command) == 2
            [line] = capsys.readouterr().err.splitlines()
            assert f"http://127.0.0.1:{port}/v2/models/toy" in line
            assert line.endswith(f"say where they are again: {token} --headers-file '{headers}'")
            assert main([*command, *shlex.split(token)]) == 2, "one of them is not both"
            assert capsys.readouterr().err.strip().endswith(f"are again: --headers-file '{headers}'")


def test_what_is_said_again_goes_on(server: Faulty, headers: Path, tmp_path: Path) -> None:
    """The same names, or the same secret from elsewhere; the target may need one only later."""
    out, file = tmp_path / "run", tmp_path / "token"
    file.write_text(TOKEN)
    assert extract(server, out, "--token-env", "MY_TOKEN", "--headers-file", str(headers)) == 0
    again = ["--headers-file", str(headers)]
    assert main(["resume", str(out), "--queries", "150", "--token-env", "MY_TOKEN", *again]) == 0
    assert main(["resume", str(out), "--queries", "200", "--token-file", str(file), *again]) == 0
    assert main(["evaluate", str(out), "--data", "digits", "--token-file", str(file), *again]) == 0
    assert json.loads((out / "result.json").read_text())["spent"] == 200


def test_secrets_belong_to_services(digits_target: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    command = ["extract", "dual-student", "--target", str(digits_target), "--queries", "50", "--out", out]
    assert main([*command, *RUN]) == 0
    assert main(["resume", out, "--queries", "100", "--token-env", "MY_TOKEN"]) == 2
    assert main(["resume", out, "--queries", "100"]) == 0


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_says_how_to_go_on(times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once and twice, while the service keeps the run waiting: the command that is printed goes on."""
    out, done = tmp_path / "a run", threading.Event()
    with Faulty(faults={"5": {"status": 503, "headers": {"Retry-After": "600"}}}) as server:

        def press() -> None:
            while server.count()["seen"] < 5 and not done.wait(0.05):
                pass
            for _ in range(times):
                if not done.wait(0.3):
                    os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dualstudent.targets.transport.GRACE", 0.5 if times == 1 else 60.0)
            assert extract(server, out, "--token-env", "MY_TOKEN") == 130
        done.set()
        thread.join()
        last = capsys.readouterr().err.splitlines()[-1]
        said, command = last.split("; go on with: dualstudent ")
        assert ("interrupted" in said) == (times == 2)
        assert command == f"resume '{out}' --token-env MY_TOKEN"
        server.change()
        assert main(shlex.split(command)) == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["complete"], result["spent"], result["bill"]["from_journal"] > 0) == (True, 100, True)
