"""`dualstudent serve`: a target in another process answers what it answers here, counts, and ends cleanly."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from dualstudent.cli import main
from dualstudent.methods import Frugal
from dualstudent.serve import Served
from dualstudent.targets import ServiceOptions, TargetOptions, open_target

TOKEN = "a-token-that-nobody-may-see-81723"
RUN = ["--width", "8", "--noise-size", "16", "--batch", "32", "--points", "3", "--threads", "1"]


class Server:
    """`dualstudent serve` in a process of its own."""

    def __init__(self, target: Path, *words: str) -> None:
        command = [sys.executable, "-m", "dualstudent", "serve", str(target), "--port", "0", *words]
        environment = {**os.environ, "MY_TOKEN": TOKEN}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "http" in line, self.process.communicate()[1]
        self.url = next(word for word in line.split() if word.startswith("http"))
        self.base = self.url.partition("/v2")[0]

    def get(self, path: str) -> Any:
        request = urllib.request.Request(self.base + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End it, once; return what it printed after its first line."""
        if self.process.returncode is None:
            self.process.send_signal(number)
            self.said = self.process.communicate(timeout=30)[0]
        return self.said


@contextmanager
def serving(target: Path, *words: str) -> Iterator[Server]:
    server = Server(target, *words)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(digits_target: Path) -> Iterator[Server]:
    with serving(digits_target, "--token-needed", "MY_TOKEN") as served:
        yield served


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)


def images(n: int = 24) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def opened(url: str, output: Any = "probabilities", **options: Any) -> ds.Target:
    return open_target(
        url, TargetOptions(output=output, service=ServiceOptions(token_env="MY_TOKEN", **options))
    ).target


@pytest.mark.parametrize("binary", [True, False])
def test_answers_what_the_target_answers(server: Server, digits_target: Path, binary: bool) -> None:
    local = ds.open_target(str(digits_target)).target
    before = server.get("/count")["images"]
    target = opened(server.url, binary=binary, request_batch=8)
    assert target.spec == local.spec
    assert torch.equal(target(images()), local(images()))
    assert torch.equal(opened(server.url + "/versions/1", binary=binary)(images(5)), local(images(5)))
    assert server.get("/count")["images"] == before + 29


def outcome(out: Path) -> dict[str, Any]:
    """All that must not depend on where the target is."""
    result = json.loads((out / "result.json").read_text())
    kept = {name: value for name, value in result.items() if name not in ("timing", "bill", "flags")}
    metrics = (out / "metrics.jsonl").read_bytes()
    figures = {path.name: path.read_bytes() for path in (out / "figures").glob("asked-*.png")}
    return {"result": kept, "metrics": metrics, "figures": figures, "shown": (out / "shown.bin").read_bytes()}


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_the_students_are_those_of_the_local_target(
    server: Server, digits_target: Path, tmp_path: Path, labels: str
) -> None:
    """Over HTTP, in small requests of which several are in flight: bit for bit the same run."""
    data = ["--data", "digits", "--labels", labels, "--queries", "640", *RUN]
    before = server.get("/count")["images"]
    far = ["--target", server.url, "--token-env", "MY_TOKEN", "--request-batch", "11", "--concurrency", "3"]
    far += ["--out", str(tmp_path / "far")]
    near = ["--target", str(digits_target), "--out", str(tmp_path / "near")]
    for where in (far, near):
        assert main(["extract", "dual-student", *data, *where]) == 0
    assert outcome(tmp_path / "far") == outcome(tmp_path / "near")
    students = [(tmp_path / at / "student" / "model.safetensors").read_bytes() for at in ("far", "near")]
    assert students[0] == students[1]
    result = json.loads((tmp_path / "far" / "result.json").read_text())
    assert server.get("/count")["images"] - before == result["bill"]["asked"] + result["bill"]["audit"]
    manifest = json.loads((tmp_path / "far" / "manifest.json").read_text())
    assert manifest["target"]["service"]["version"] == "1"
    assert manifest["target"]["options"]["service"]["request_batch"] == 11
    more = ["--queries", "800", "--token-env", "MY_TOKEN"]
    assert main(["resume", str(tmp_path / "far"), *more]) == 0, "opened as it was"


@pytest.mark.slow
def test_a_whole_extraction_by_frugal(server: Server, digits_target: Path, tmp_path: Path) -> None:
    """The default recipe to its last query, over HTTP and here."""
    data = ds.load_data("digits")
    students: list[bytes] = []
    known = TargetOptions(service=ServiceOptions(token_env="MY_TOKEN"))
    for where, options in ((server.url, known), (str(digits_target), None)):
        out = tmp_path / str(len(students))
        ds.extract(Frugal(), open_target(where, options), queries=1000, out=out, data=data)
        students.append((out / "student" / "model.safetensors").read_bytes())
    assert students[0] == students[1]
    assert outcome(tmp_path / "0") == outcome(tmp_path / "1")


def test_labels_log_and_clean_end(digits_target: Path, tmp_path: Path) -> None:
    local = ds.open_target(str(digits_target)).target
    log = tmp_path / "requests.jsonl"
    words = ("--labels", "hard", "--log", str(log), "--delay", "0.05", "--name", "my digits")
    with serving(digits_target, *words) as server:
        target = open_target(
            server.url,
            TargetOptions(output="labels", classes=10, service=ServiceOptions(request_batch=6)),
        ).target
        expected = torch.nn.functional.one_hot(local(images()).argmax(1), 10).float()
        assert torch.equal(target(images()), expected)
        assert target.spec.access == ds.Access.LABEL
        said = server.stop(signal.SIGINT)
    assert server.process.returncode == 0
    assert said.splitlines()[-1] == "served 24 images in 4 requests"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["images"] for line in lines] == [6] * 4
    with log.open("a") as file:
        file.write('{"torn')
    served = Served(local, log=log)
    assert (served.requests, served.images) == (4, 24), "an earlier server's answers count"
    served.close()
    assert log.read_text().count("\n") == 4
    log.write_text("something else\n")
    with pytest.raises(ds.UserError, match="no log of served requests"):
        Served(local, log=log)


def post(url: str, body: bytes, **headers: str) -> tuple[int, str]:
    headers |= {"Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(url, body, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    with caught.value as error:
        return error.code, json.load(error)["error"]


TENSOR = {"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": [0.5] * 63}, "fit the shape"),
        ({"data": ["x"] * 64}, "fit the shape"),
        ({"data": [7.0] * 64}, "takes [0, 1]"),
        ({"data": [float("nan")] * 64}, "NaN"),
        ({"shape": [1, 1, 9, 9]}, "shape is [n, 1, 8, 8]"),
        ({"shape": []}, "shape is"),
        ({"datatype": "BYTES"}, "datatype FP32"),
        ({"name": "other"}, "'images'"),
        ({"parameters": {"binary_data_size": 4}}, "0 bytes follow"),
    ],
)
def test_what_a_caller_does_wrong_is_told(server: Server, change: dict[str, Any], words: str) -> None:
    body = json.dumps({"inputs": [TENSOR | change]}).encode()
    status, said = post(server.url + "/infer", body)
    assert status == 400
    assert words in said


def test_a_port_in_use(server: Server, digits_target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = server.base.rpartition(":")[2]
    assert main(["serve", str(digits_target), "--port", port]) == 2
    assert f"cannot serve at 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err
    assert main(["serve", str(digits_target), "--port", "99999"]) == 2


def test_no_token_in_anything_a_run_leaves(
    server: Server,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a token nor a header of a file is in the run's folder, in what is printed, or in errors."""
    other = "another-secret-55512"
    headers, out = tmp_path / "headers", tmp_path / "run"
    headers.write_text(f"# mine\nX-Api-Key: {other}\n")
    monkeypatch.setenv("WRONG", TOKEN[::-1])
    command = ["extract", "dual-student", "--target", server.url, "--queries", "200", "--out", str(out), *RUN]
    command += ["--headers-file", str(headers)]
    assert main(command) == 2
    assert main([*command, "--token-env", "WRONG"]) == 2
    assert main([*command, "--token-env", "MY_TOKEN"]) == 0
    said = "".join(capfd.readouterr()) + caplog.text
    assert f"sends the token in $MY_TOKEN and the headers in {headers}" in said
    assert said.count("status 401: a bearer token is needed") == 2
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for secret in (TOKEN, TOKEN[::-1], other):
        assert secret not in said
        assert secret.encode() not in kept
    assert b"MY_TOKEN" in kept, "the name is kept, so that the run can be resumed"


def test_sigterm_ends_it_cleanly(server: Server) -> None:
    """The last test: the server of the others is stopped."""
    assert server.stop(signal.SIGTERM).splitlines()[-1].startswith("served ")
    assert server.process.returncode == 0
