"""Runs taken up again: extended, judged anew, with targets and data that have moved or changed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dualstudent as ds
from conftest import Linear
from dualstudent import experiment
from dualstudent.cli import main
from dualstudent.cli.show import Bars
from dualstudent.methods.procedural import Noise

METHOD = ds.DualStudent(batch=8, width=4, noise_size=8)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


class Mine(nn.Module):
    """A target of the user's own, with weights."""

    def __init__(self, seed: int, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.spec, self.head = ds.Spec((1, 8, 8), classes), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)).softmax(1)  # type: ignore[no-any-return]


def test_an_extension_keeps_what_was_judged_before(tmp_path: Path) -> None:
    run = ds.extract(METHOD, Mine(0, 10).eval(), queries=40, out=tmp_path / "r")
    data = ds.load_data("digits")[:50]
    judged = ds.evaluate(run.path, data, Mine(0, 10).eval())
    assert judged["spent"] == 40
    longer = ds.resume(run.path, Mine(0, 10).eval(), queries=80)
    assert longer.result["evaluations"] == [judged]
    assert (longer.result["spent"], longer.result["extended_from"]) == (80, [40])


def test_a_run_from_before_an_option_came_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version's run goes on with the default of what it did not know, and not in silence."""
    target, method = Mine(0, 10).eval(), Noise(batch=8)
    with monkeypatch.context() as older:
        whole = asdict
        older.setattr(
            "dualstudent.experiment.folder.asdict",
            lambda m: {k: v for k, v in whole(m).items() if k != "replays"},
        )
        run = ds.extract(method, target, queries=40, out=tmp_path / "old")
    assert ds.resume(run.path, target, queries=80).result["spent"] == 80
    assert "goes on with: --replays 4" in caplog.text
    caplog.clear()
    run = ds.extract(method, target, queries=40, out=tmp_path / "new")
    ds.resume(run.path, target, queries=80)
    assert "goes on with" not in caplog.text


def test_a_run_that_another_version_planned_otherwise_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot counts steps: other ones would ask too much, or nothing."""
    target = Mine(0, 10).eval()
    run = ds.extract(Noise(batch=8), target, queries=80, out=tmp_path / "r")
    paid = (run.path / "attack.account").read_bytes()
    with monkeypatch.context() as newer:
        whole = Noise.phases
        newer.setattr(Noise, "phases", lambda _, *at: whole(Noise(batch=16), *at))
        with pytest.raises(ds.UserError, match="80 images were asked in 10 steps, which this version plans"):
            ds.resume(run.path, target, queries=400)
        assert (run.path / "attack.account").read_bytes() == paid
    assert ds.resume(run.path, target, queries=400).result["spent"] == 400


def test_a_stopped_extension_keeps_the_finished_result(tmp_path: Path) -> None:
    target, data = Mine(0, 10).eval(), ds.load_data("digits")[:50]
    run = ds.extract(METHOD, target, queries=40, out=tmp_path / "r", data=data)
    with pytest.raises(ds.UserError, match="digits has other images"):
        ds.resume(run.path, target, queries=400)
    with pytest.raises(ds.Stopped):
        ds.resume(run.path, target, queries=400, data=data, stop=lambda: True)
    assert read(run.path / "result.json") == run.result
    done = ds.resume(run.path, target, data=data)
    assert (done.result["spent"], done.result["complete"]) == (400, True)
    straight = ds.extract(METHOD, target, queries=40, out=tmp_path / "s", data=data)
    straight = ds.resume(straight.path, target, queries=400, data=data)
    ignored = ("timing", "bill")
    assert {k: v for k, v in done.result.items() if k not in ignored} == {
        k: v for k, v in straight.result.items() if k not in ignored
    }


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Mine(1).eval(), "other weights"),
        (Mine(0, 5).eval(), "classes was 4 and is 5"),
        (Linear(ds.Spec((1, 8, 8), 4, (-1.0, 1.0))), r"bounds was \(0.0, 1.0\) and is \(-1.0, 1.0\)"),
    ],
    ids=["weights", "classes", "bounds"],
)
def test_another_target_is_not_asked(other: Any, words: str, tmp_path: Path) -> None:
    run = ds.extract(METHOD, Mine(0).eval(), queries=40, out=tmp_path / "r")
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(ds.UserError, match=words):
        ds.resume(run.path, other, queries=80)
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


def test_a_trained_folder_is_compared_with_a_module(digits_target: Path, tmp_path: Path) -> None:
    opened = ds.open_target(str(digits_target))
    run = ds.extract(METHOD, opened, queries=40, out=tmp_path / "r")
    with pytest.raises(ds.UserError, match="other weights"):
        ds.resume(run.path, Mine(0, 10).eval(), queries=80)
    assert ds.resume(run.path, opened.target, queries=80).result["spent"] == 80
    assert ds.resume(run.path, opened, queries=120).result["spent"] == 120


def test_a_lost_bill_is_no_damaged_snapshot(tmp_path: Path) -> None:
    """What was paid is known from the account alone: without it nothing is asked again in silence."""
    target = Mine(0).eval()
    run = ds.extract(METHOD, target, queries=80, out=tmp_path / "r")
    snapshot = (run.path / "snapshot.pt").read_bytes()
    (run.path / "attack.account").unlink()
    with pytest.raises(ds.UserError, match="the snapshot has 80 images, the account 0"):
        ds.resume(run.path, target, queries=160)
    assert (run.path / "snapshot.pt").read_bytes() == snapshot


def test_an_unreadable_snapshot_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Mine(0).eval()
    run = ds.extract(METHOD, target, queries=80, out=tmp_path / "r")

    honest = Path.open

    def denied(path: Path, *args: Any, **more: Any) -> Any:
        if not path.name.startswith("snapshot"):
            return honest(path, *args, **more)
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        with pytest.raises(ds.UserError, match=r"cannot read .*: Permission denied"):
            ds.resume(run.path, target, queries=160)
    with monkeypatch.context() as patch:
        patch.setattr(
            "dualstudent.checkpoint.torch.load", lambda *_, **__: (_ for _ in ()).throw(MemoryError())
        )
        with pytest.raises(ds.UserError, match="out of memory while reading"):
            ds.resume(run.path, target, queries=160)
    assert ds.resume(run.path, target, queries=160).result["bill"]["asked_again"] == 0


def test_a_failed_extension_leaves_a_finished_run(tmp_path: Path) -> None:
    target = Mine(0).eval()
    run = ds.extract(METHOD, target, queries=80, out=tmp_path / "r")
    shown = (run.path / "shown.bin").read_bytes()
    (run.path / "shown.bin").unlink()
    with pytest.raises(ds.UserError, match="record of images shown"):
        ds.resume(run.path, target, queries=160)
    (run.path / "shown.bin").write_bytes(shown)
    assert ds.resume(run.path, target, queries=120).result["spent"] == 120


def test_a_target_that_moved(digits_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another directory it is found; after it has moved, --target says where."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_target, "mine")
    words = "extract dual-student --target mine --queries 50 --batch 8 --width 4 --out r --data none"
    assert main(words.split()) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["resume", str(tmp_path / "r"), "--queries", "90"]) == 0
    shutil.move(tmp_path / "mine", tmp_path / "moved")
    assert main(["resume", str(tmp_path / "r"), "--queries", "120"]) == 2
    assert main(["resume", str(tmp_path / "r"), "--queries", "120", "--target", str(tmp_path / "moved")]) == 0
    words = f"evaluate {tmp_path}/r --data digits --target {tmp_path}/moved"
    assert main(words.split()) == 0
    assert read(tmp_path / "r" / "result.json")["accuracy"] is not None


def test_without_its_data_set_a_copy_is_made_but_not_judged(
    digits_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(digits_target, tmp_path / "t")
    about = read(tmp_path / "t" / "target.json")
    (tmp_path / "t" / "target.json").write_text(json.dumps(about | {"data": "mnist"}))
    monkeypatch.delenv("DUALSTUDENT_DATA", raising=False)
    words = f"extract dual-student --target {tmp_path}/t --queries 50 --batch 8 --width 4 --out {tmp_path}/r"
    assert main(words.split()) == 0
    assert "figures will be null" in caplog.text
    result = read(tmp_path / "r" / "result.json")
    assert (result["spent"], result["accuracy"], result["agreement"]) == (50, None, None)
    for more in ("--split tset", f"--data-dir {tmp_path}/nowhere"):
        assert main([*words.split(), "--overwrite", *more.split()]) == 2  # asked for, so not passed over
    assert read(tmp_path / "r" / "result.json") == result


def test_a_start_from_another_input_space_is_refused(tmp_path: Path, linear: Callable[..., Linear]) -> None:
    first = ds.extract(METHOD, linear(), queries=40, out=tmp_path / "r")
    again = ds.DualStudent(batch=8, width=4, start=str(first.path))
    with pytest.raises(ds.UserError, match="inputs of bounds"):
        ds.extract(again, linear(bounds=(-1.0, 1.0)), queries=40, out=tmp_path / "s")
    with pytest.raises(ds.UserError, match="leave --student resnet8 out"):
        ds.extract(
            ds.DualStudent(batch=8, width=4, start=str(first.path), student="resnet8"),
            linear(),
            queries=40,
            out=tmp_path / "s",
        )
    assert ds.extract(again, linear(), queries=40, out=tmp_path / "s").result["spent"] == 40


def test_a_plan_has_the_time_of_evaluations(
    linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of one evaluation and the last figures, each a second here."""
    from dualstudent.experiment import estimate

    def slow(clone: Any, data: ds.Images, spec: ds.Spec) -> torch.Tensor:
        time.sleep(len(data) / 900)
        return torch.zeros(1)

    monkeypatch.setattr(sys.modules["dualstudent.experiment.estimate"], "logits", slow)
    target, budget = linear(classes=10), METHOD.queries_per_step
    plain = estimate(METHOD, target, queries=budget)
    judged = estimate(METHOD, target, queries=budget, data=ds.load_data("digits"))
    assert judged.seconds - plain.seconds == pytest.approx(2, abs=0.5)
    assert target.seen == 0


@pytest.mark.parametrize("access", [ds.Access.PROBS, ds.Access.LABEL])
def test_a_plan_asks_nothing(access: ds.Access, linear: Callable[..., Linear]) -> None:
    target = linear(access=access)
    labels: Any = "soft" if access == ds.Access.PROBS else "hard"
    found = experiment.estimate(METHOD, target, queries=1000, labels=labels)
    assert target.seen == 0
    assert (found.queries, found.whole) == (1000, False)
    assert found.seconds > 0
    mine = Mine(0).eval()  # of the user's own class: who knows what it calls
    calls: list[int] = []
    mine.register_forward_hook(lambda *_: calls.append(1))
    assert not experiment.estimate(METHOD, mine, queries=1000).whole
    assert calls == []
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1)).eval()
    weights = [w.clone() for w in network.parameters()]
    known = ds.ModuleTarget(network, ds.Spec((1, 8, 8), 4))
    assert experiment.estimate(METHOD, known, queries=1000).whole
    network.register_forward_hook(lambda *_: calls.append(1))
    assert not experiment.estimate(METHOD, known, queries=1000).whole
    assert calls == []
    few = ds.DualStudent(batch=8, width=4, noise_size=8, max_classes=4)
    unknown = Linear(ds.Spec((1, 8, 8), None, access=ds.Access.LABEL), width=3)
    assert experiment.estimate(few, unknown, queries=100, labels="hard").queries == 100
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))


def test_onnx_names_the_target_s_classes(tmp_path: Path) -> None:
    """Outputs come in order of first appearance; a file for others has the target's own order."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    target = Linear(ds.Spec((1, 8, 8), None, access=ds.Access.LABEL), width=6)
    method = ds.DualStudent(batch=8, width=4, noise_size=8, max_classes=20)
    run = ds.extract(method, target, queries=200, labels="hard", out=tmp_path / "r")
    assert main(["export", str(run.path), "--onnx", str(tmp_path / "m.onnx")]) == 0
    x = torch.rand(40, 1, 8, 8)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (p,) = session.run(None, {"images": x.numpy()})
    ids = run.clone.ids
    assert ids is not None
    assert ids[: int((ids >= 0).sum())].tolist() != sorted(ids[ids >= 0].tolist()), "else nothing is tested"
    assert p.argmax(1).tolist() == ids[run.clone(x).argmax(1)].tolist()
    assert p.shape == (40, int(ids.max()) + 1)
    manifest = (run.path / "manifest.json").read_bytes()
    assert main(["export", str(run.path), "--onnx", str(run.path / "manifest.json")]) == 2
    assert (run.path / "manifest.json").read_bytes() == manifest


def test_speed_counts_from_where_a_run_was_taken_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bars = Bars(training="steps")
    bars.update("extracting", 9_000, 10_000)
    assert capsys.readouterr().err == ""
    now[0] = 110.0
    bars.update("extracting", 9_500, 10_000, "agreement 0.5")
    assert capsys.readouterr().err == ("extracting: 9,500/10,000 queries, 50/s, 10 s left  agreement 0.5\n")
    bars.update("training", 7, 7)
    assert capsys.readouterr().err == "training: 7/7 steps\n"


def children(pid: int) -> list[int]:
    text = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in text.stdout.split()]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_demo_that_is_ended_leaves_nobody_at_work(number: int, tmp_path: Path) -> None:
    if shutil.which("ps") is None:
        pytest.skip("no ps to look for processes with")
    command = [sys.executable, "-m", "dualstudent", "demo", "--out", str(tmp_path / "d"), "--queries", "2M"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as demo:
        limit = time.monotonic() + 200
        while not (tmp_path / "d" / "soft" / "attack.account").exists():
            assert demo.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.2)
        workers = children(demo.pid)
        assert len(workers) >= 2
        demo.send_signal(number)
        said = "" if demo.stderr is None else demo.stderr.read()
        assert demo.wait(60) == (130 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert re.search(r"^dualstudent: interrupted$", said, re.MULTILINE)
    limit = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < limit, "the copies go on"
        time.sleep(0.2)
