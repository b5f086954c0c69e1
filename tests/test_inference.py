"""The Open Inference Protocol: kinds of tensors, layouts and batches; TLS; stops; what a resume opens."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from dualstudent.errors import Stopped, TargetError, UserError
from dualstudent.ledger import Account
from dualstudent.spec import Service
from dualstudent.targets import Opened, ServiceOptions, TargetOptions, open_target
from dualstudent.targets.wire import Secrets
from fault_server import Faulty

METHOD = ds.DualStudent(batch=16, width=8, noise_size=16)


def images(n: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def opened(server: Faulty, **options: Any) -> Opened:
    mine = {name: options.pop(name) for name in list(options) if name in vars(TargetOptions())}
    service = ServiceOptions(**{"pause": 0.01, "request_batch": 5} | options)
    return open_target(server.url, TargetOptions(service=service, **mine))


def asked(target: ds.Target, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images as the target saw them, and its answers."""
    shown: list[tuple[Tensor, Tensor]] = []
    ds.Oracle(target, Account("attack"), asked=shown)(x)
    return shown[0]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
def test_every_kind_of_input(datatype: str, layout: str, binary: bool) -> None:
    shape = (3, 4, 6)
    with Faulty(model={"shape": shape, "layout": layout, "datatype": datatype}) as server:
        target = opened(server, binary=binary).target
        levels, half = 256 if datatype == "UINT8" else None, datatype == "FP16"
        assert target.spec == ds.Spec(shape, 4, levels=levels, half=half)
        x, answers = asked(target, images(12, shape))
        assert torch.equal(x, images(12, shape)) == (datatype == "FP32"), "what is learnt is what was sent"
        assert not half or torch.equal(x, x.half().float())
        expected = torch.from_numpy(server.model(x.numpy()))
    assert torch.allclose(answers, expected, atol=1e-6)


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_every_kind_of_output(output: str) -> None:
    with Faulty(model={"output": output}) as server:
        target = opened(server, output=output, classes=4).target
        _, answers = asked(target, images(12))
        raw = torch.from_numpy(server.model(images(12).numpy()))
    if output == "logits":
        assert torch.allclose(answers, raw.softmax(1))
    else:
        assert torch.equal(answers.argmax(1), raw)
        assert target.spec.access == ds.Access.LABEL


def test_labels_of_probabilities() -> None:
    with Faulty() as server:
        _, answers = asked(opened(server, output="labels").target, images(12))
        assert torch.equal(answers.argmax(1), torch.from_numpy(server.model(images(12).numpy())).argmax(1))


@pytest.mark.parametrize(("dims", "requests"), [([8, 1, 8, 8], 2), ([1, 1, 8, 8], 12), ([1, 8, 8], 12)])
def test_models_of_a_fixed_batch(dims: list[int], requests: int) -> None:
    """Batches are filled up; without a batch dimension an image is a request."""
    with Faulty() as server:
        server.change(metadata={"inputs": [{"name": "input", "datatype": "FP32", "shape": dims}]})
        target = opened(server, shape=(1, 8, 8)).target
        assert torch.equal(target(images(12)), torch.from_numpy(server.model(images(12).numpy())))
        assert server.count()["requests"] == requests


def test_half_precision_answers_are_put_back_on_the_simplex() -> None:
    with Faulty(faults={"*": {"datatype": "FP16"}}) as server:
        _, answers = asked(opened(server).target, images(40))
        expected = torch.from_numpy(server.model(images(40).numpy()))
    assert torch.allclose(answers, expected, atol=1e-3)
    assert (answers.sum(1) - 1).abs().max() < 1e-6


def test_a_server_without_metadata_of_its_own() -> None:
    with Faulty() as server:
        server.change(pages={"/v2": {"status": 404}})
        found = opened(server)
        assert found.service is not None
        assert found.service["protocol"] == "Open Inference Protocol v2", "no extension is known of"
        x = images(7)
        assert torch.equal(found.target(x), torch.from_numpy(server.model(x.numpy())))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A certificate that nobody but who is told trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    names = [str(folder / "certificate.pem"), str(folder / "key.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-out", names[0], "-keyout", names[1]], check=True, capture_output=True)
    return names


def test_certificates_are_verified(certificate: list[str]) -> None:
    with Faulty(tls=certificate) as server:
        with pytest.raises(TargetError, match=r"is not trusted .*--ca-file"):
            opened(server)
        x = images(7)
        target = opened(server, ca_file=certificate[0]).target
        assert torch.equal(target(x), torch.from_numpy(server.model(x.numpy())))


def outcome(out: Path) -> tuple[bytes, bytes]:
    return (out / "student" / "model.safetensors").read_bytes(), (out / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The outcome of a run in which nothing happens."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "quiet"
    with Faulty() as server:
        ds.extract(METHOD, opened(server), queries=400, out=out)
    return outcome(out)


def test_failures_on_the_way_change_nothing(quiet: tuple[bytes, bytes], tmp_path: Path) -> None:
    faults = [{"status": 503}, {"reset": "before"}, {"reset": "after"}, {"cut": 5}, {"wait": 0.05}]
    with Faulty(share={"of": 0.3, "seed": 3, "faults": faults}) as server:
        found = opened(server, concurrency=3)
        run = ds.extract(METHOD, found, queries=400, out=tmp_path / "run")
        assert isinstance(found.target, Service)
        assert found.target.traffic.retried > 5
    assert outcome(tmp_path / "run") == quiet
    assert run.result["spent"] == 400


def test_stopped_while_waiting_and_resumed(
    quiet: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the service keeps a run waiting that is to stop, it stops, and can be resumed."""
    monkeypatch.setattr("dualstudent.targets.transport.GRACE", 0.1)
    with Faulty(faults={"31": {"status": 503, "headers": {"Retry-After": "600"}}}) as server:
        found, start = opened(server), time.monotonic()

        def stop() -> bool:
            return server.count()["seen"] >= 31

        with pytest.raises(Stopped):
            ds.extract(METHOD, found, queries=400, out=tmp_path / "run", stop=stop)
        assert time.monotonic() - start < 60
        partial = json.loads((tmp_path / "run" / "result.json").read_text())
        assert not partial["complete"]
        server.change()
        ds.resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == quiet


@pytest.mark.parametrize("name", vars(ServiceOptions()))
@pytest.mark.parametrize("value", [None, True, "x\x00", -1, 1.5, [], {}, float("nan")])
def test_options_in_a_manifest_that_are_none(name: str, value: Any) -> None:
    """What can be read opens, or is refused in one line: nothing crashes."""
    values = vars(ServiceOptions()) | {name: value}
    try:
        options = ServiceOptions.from_json(values)
        Secrets(options, os.environ)
    except UserError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert ServiceOptions.from_json(vars(options)) == options


def test_not_resumed_against_another_version(tmp_path: Path) -> None:
    with Faulty() as server:
        with pytest.raises(Stopped):
            ds.extract(METHOD, opened(server), queries=400, out=tmp_path / "run", stop=lambda: True)
        server.change(metadata={"versions": ["7"]})
        before = (tmp_path / "run" / "attack.account").read_bytes()
        with pytest.raises(UserError, match="other metadata, version or template"):
            ds.resume(tmp_path / "run")
        assert (tmp_path / "run" / "attack.account").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_service_keeps_a_run_waiting(number: int, tmp_path: Path) -> None:
    again = {"status": 503, "headers": {"Retry-After": "600"}}
    with Faulty(faults={"20": again}) as server:
        command = [sys.executable, "-m", "dualstudent", "extract", "dual-student", "--target", server.url]
        command += ["--queries", "2000", "--out", str(tmp_path / "run"), "--request-batch", "8"]
        run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        while server.count()["seen"] < 20 and run.poll() is None:
            time.sleep(0.1)
        time.sleep(0.5)
        run.send_signal(number)
        said = run.communicate(timeout=30)[1]
        assert run.returncode == 130
        assert f"dualstudent resume {tmp_path / 'run'}" in said
        server.change()
        done = subprocess.run([sys.executable, "-m", "dualstudent", "resume", str(tmp_path / "run")])
        assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["spent"] == 2000


def threads() -> int:
    return sum(thread.name.startswith("dualstudent") for thread in threading.enumerate())


def test_a_target_that_is_gone_leaves_nothing_open() -> None:
    gc.collect()
    before = threads()
    with Faulty() as server:
        target = opened(server).target
        target(images(20))
        assert threads() == before + 4
        del target
        for _ in range(100):
            if threads() == before:
                break
            time.sleep(0.02)
        assert threads() == before
