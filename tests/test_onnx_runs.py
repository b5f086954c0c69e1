"""Runs against ONNX files: what the manifest knows of them, exported clones, models that take bytes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from dualstudent.cli import main
from dualstudent.methods import find
from dualstudent.networks import Students
from onnx_fixture import build
from test_onnx_target import asked, images, opened

QUICK = ["--batch", "16", "--width", "8", "--noise-size", "16", "--points", "2", "--threads", "1"]


def extract(target: str, out: Path, *more: str) -> int:
    options = ["--target", target, "--queries", "100", "--out", str(out)]
    return main(["extract", "dual-student", *options, *QUICK, *more])


def test_the_manifest_knows_its_files_and_others_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, run = tmp_path / "models", tmp_path / "run"
    models.mkdir()
    path = build(models / "m.onnx", shape=(1, 8, 8), dims=("n", 1, 8, 8), external="weights.bin")
    assert extract(f"onnx:{path}", run) == 0
    about = json.loads((run / "manifest.json").read_text())["target"]
    assert about["files"] == opened(path).files
    assert about["reference"] == f"onnx:{path}"
    shutil.copytree(models, tmp_path / "moved")
    more = ["resume", str(run), "--queries"]
    assert main([*more, "150", "--target", f"onnx:{tmp_path / 'moved' / 'm.onnx'}"]) == 0
    content = bytearray((models / "weights.bin").read_bytes())
    content[5] ^= 1
    (models / "weights.bin").write_bytes(content)
    capsys.readouterr()
    before = (run / "attack.account").read_bytes()
    assert main([*more, "200"]) == 2
    assert "another target than the run began with" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data", "digits"]) == 2
    assert (run / "attack.account").read_bytes() == before


def test_an_exported_clone_is_a_target_that_agrees(digits_target: Path, tmp_path: Path) -> None:
    assert extract(str(digits_target), tmp_path / "run") == 0
    assert main(["export", str(tmp_path / "run"), "--onnx", str(tmp_path / "copy.onnx")]) == 0
    target = opened(tmp_path / "copy.onnx").target
    assert target.spec == ds.Spec((1, 8, 8), 10)
    x, clone = images(300, (1, 8, 8)), ds.load_student(tmp_path / "run")
    with torch.inference_mode():
        p = clone(x).softmax(1)
    assert torch.allclose(asked(target, x), p, atol=1e-5)


@pytest.mark.parametrize("method", ["dfme", "maze"])
def test_steps_below_a_level_are_refused(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = build(tmp_path / "m.onnx", shape=(1, 8, 8), dims=("n", 1, 8, 8), dtype="uint8", scale=255)
    options = ["--target", f"onnx:{path}", "--queries", "600", "--out", str(tmp_path / "run")]
    small = ["--batch", "8", "--width", "8", "--threads", "1"]
    assert main(["extract", method, *options, *small]) == 2
    said = capsys.readouterr().err
    assert "drown in rounding" in said
    assert "--allow-coarse" in said
    assert not (tmp_path / "run").exists()
    assert main(["extract", method, *options, *small, "--allow-coarse"]) == 0


@pytest.mark.parametrize("name", ["frugal", "disguide", "procedural", "dual-student"])
def test_what_students_learn_is_what_the_service_saw(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a model that takes bytes: not only what is asked, what is learnt too lies on its levels."""
    learnt: list[Tensor] = []
    real = Students.in_turns

    def watched(students: Students, x: Tensor) -> Any:
        learnt.append(x.detach().clone())
        return real(students, x)

    monkeypatch.setattr(Students, "in_turns", watched)
    path = build(tmp_path / "m.onnx", shape=(1, 8, 8), dims=("n", 1, 8, 8), dtype="uint8", scale=255)
    few: dict[str, Any] = (
        {"compute_least": 10} if name == "frugal" else {"replays": 1} if name == "procedural" else {}
    )
    kind: Any = find(name)
    ds.extract(kind(batch=16, **few), opened(path), queries=96, out=tmp_path / "run", device="cpu", points=1)
    seen = 255 * torch.cat(learnt)
    assert len(seen) >= 96
    assert (seen - seen.round()).abs().max() < 1e-3
    assert ((seen > 1) & (seen < 254)).any()
