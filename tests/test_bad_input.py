"""Bad input: one clear line on standard error, exit code 2, nothing lost."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import dualstudent as ds
from dualstudent.cli import main

MODELS = """
import numpy as np, torch
from torch import nn

class Wrong(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer
    def forward(self, x):
        return self.answer(x)

def uniform(b, k=4): return torch.full((b, k), 1 / k)
def logits(): return Wrong(lambda x: torch.randn(len(x), 4) * 5)
def nan(): return Wrong(lambda x: uniform(len(x)) * float("nan"))
def inf(): return Wrong(lambda x: uniform(len(x)) * float("inf"))
def negative(): return Wrong(lambda x: torch.tensor([1.5, -0.5, 0, 0]).repeat(len(x), 1))
def unnormalised(): return Wrong(lambda x: uniform(len(x)) * 2)
def classes(): return Wrong(lambda x: uniform(len(x), 7))
def batch(): return Wrong(lambda x: uniform(len(x) - 1))
def raises(): return Wrong(lambda x: x.nonsense())
def shape(): return nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Softmax(1))
def labels(): return Wrong(lambda x: torch.zeros(len(x), dtype=torch.long))
def nothing(): return 42
def broken(*shape): raise RuntimeError("no weights here")
def wide(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))
def small(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(9, classes))
def good(): return Wrong(lambda x: uniform(len(x)))
"""
OURS = "--target {target} --queries 100 --out {out} --batch 8 --width 4"
OWN = "--shape 1 8 8 --classes 4 --queries 100 --out {out} --batch 8 --width 4"


@pytest.fixture
def place(digits_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    (tmp_path / "badmodels.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DUALSTUDENT_DATA", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("badmodels", None)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    for kind in ("cat", "dog"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        Image.new("L", (8, 8), len(kind) * 9).save(tmp_path / "pictures" / kind / "1.png")
    (tmp_path / "full" / "precious.txt").write_text("x")
    return {"target": str(digits_target), "out": str(tmp_path / "out"), "tmp": str(tmp_path)}


CASES = {
    "unknown command": ("extrct", "did you mean 'extract'"),
    "unknown method": ("extract dual-studnt --target x", "did you mean 'dual-student'"),
    "no method": ("extract --target x", "needs a method"),
    "unknown option": (f"extract dual-student {OURS} --bach 3", "did you mean '--batch'"),
    "unknown preset": (f"extract dual-student {OURS} --preset smal", "did you mean 'small'"),
    "unknown labels": (f"extract dual-student {OURS} --labels sof", "sof"),
    "missing options": ("extract dual-student --target x", "needs --queries, --out"),
    "unknown architecture": (f"extract dual-student {OURS} --student digits-cn", "did you mean 'digits-cnn'"),
    "student too large": (f"extract dual-student {OURS} --student lenet5", "at least 12×12"),
    "unknown data set": (f"extract dual-student {OURS} --data digts", "did you mean 'digits'"),
    "unknown device": (f"extract dual-student {OURS} --device gpu7", "--device gpu7"),
    "no threads": (f"extract dual-student {OURS} --threads 0", "--threads 0"),
    "zero queries": (f"extract dual-student {OURS} --queries 0", "at least 2"),
    "negative queries": (f"extract dual-student {OURS} --queries=-5", "-5"),
    "not a number": (f"extract dual-student {OURS} --queries 5q", "write 50000, 50k or 2M"),
    "batch of one": (f"extract dual-student {OURS} --batch 1", "--batch 1"),
    "one student": (f"extract dual-student {OURS} --students 1", "--students 1"),
    "no target": ("extract dual-student --target nowhere --queries 9 --out {out}", "no target 'nowhere'"),
    "no module": (f"extract dual-student --target torch:nomodule:f {OWN}", "cannot import 'nomodule'"),
    "no factory": (f"extract dual-student --target torch:badmodels:f {OWN}", "has no 'f'"),
    "no colon": (f"extract dual-student --target torch:badmodels {OWN}", "package.module:factory"),
    "no module made": (
        f"extract dual-student --target torch:badmodels:nothing {OWN}",
        "not a torch.nn.Module",
    ),
    "factory raises": (f"extract dual-student --target torch:badmodels:broken {OWN}", "no weights here"),
    "student factory raises": (
        f"extract dual-student {OURS} --student torch:badmodels:broken",
        "badmodels:broken failed: RuntimeError: no weights here",
    ),
    "student of another head": (
        f"extract dual-student {OURS} --student torch:badmodels:wide",
        "gives (2, 11) for 2 images, not logits (2, 10)",
    ),
    "student of another shape": (
        f"extract dual-student {OURS} --student torch:badmodels:small",
        "fails on images (1, 8, 8)",
    ),
    "infinite rate": (f"extract dual-student {OURS} --rate-soft inf", "--rate-soft inf"),
    "diverges": (
        f"extract dual-student {OURS} --queries 400 --rate-soft 1e30",
        "at step 1: lower --rate-soft, --rate-hard, --generator-rate",
    ),
    "diverges in the last step": (
        f"extract dual-student {OURS} --queries 40 --rate-soft 1e30",
        "diverged: loss is nan at step 1",
    ),
    "drops": (f"extract dual-student {OURS} --drops 2 3", "--drops 2 3: shares"),
    "stride": ("extract frugal --target {target} --queries 9 --out {out} --stride 2", "--stride 2: it must"),
    "grain": ("extract frugal --target {target} --queries 9 --out {out} --grain 2", "--grain 2: it must"),
    "batch": ("extract frugal --target {target} --queries 9 --out {out} --batch 1", ": --batch 1: it must"),
    "memory": (
        "extract frugal --target {target} --queries 9 --out {out} --batch 10000000",
        "--memory 1000000: it must be at least 10000002",
    ),
    "no grain": ("extract frugal --target {target} --queries 9 --out {out} --grain=-1", "--grain -1"),
    "drops below": (f"extract dual-student {OURS} --drops=-1", "--drops -1"),
    "points": (f"extract dual-student {OURS} --points=-1", "--points -1"),
    "snapshots": (f"extract dual-student {OURS} --snapshot-every=-1", "--snapshot-every -1"),
    "words for a number": (f"extract dual-student {OURS} --threads x", "--threads x: give a whole number"),
    "class count misspelt": (f"extract dual-student {OURS} --classes uknown", "a whole number or 'unknown'"),
    "labels misspelt": (f"extract dual-student {OURS} --labels Soft", "did you mean 'soft'?"),
    "train batch": ("target train digits --arch digits-cnn --out {out} --batch 0", "--batch 0"),
    "train rate": ("target train digits --arch digits-cnn --out {out} --rate=-1", "--rate -1"),
    "train shift": ("target train digits --arch digits-cnn --out {out} --shift=-2", "--shift -2"),
    "train epochs": ("target train digits --arch digits-cnn --out {out} --epochs 0", "--epochs 0"),
    "train momentum": ("target train digits --arch digits-cnn --out {out} --momentum 5", "--momentum 5"),
    "train diverges": (
        "target train digits --arch digits-cnn --out {out} --epochs 1 --rate 1e38",
        "lower --rate",
    ),
    "one folder for both splits": (
        "target train {tmp}/pictures --arch digits-cnn --out {out}",
        "images it has not seen",
    ),
    "start inside out": (f"extract dual-student {OURS} --start {{out}}/student", "choose another --out"),
    "no shape": ("extract dual-student --target torch:badmodels:good --queries 9 --out {out}", "--shape"),
    "logits": (f"extract dual-student --target torch:badmodels:logits {OWN}", "--output logits"),
    "NaN": (f"extract dual-student --target torch:badmodels:nan {OWN}", "NaN"),
    "infinite": (f"extract dual-student --target torch:badmodels:inf {OWN}", "infinite"),
    "negative": (f"extract dual-student --target torch:badmodels:negative {OWN}", "no probabilities"),
    "unnormalised": (f"extract dual-student --target torch:badmodels:unnormalised {OWN}", "summing to 2"),
    "class count": (f"extract dual-student --target torch:badmodels:classes {OWN}", "--classes 7"),
    "batch length": (f"extract dual-student --target torch:badmodels:batch {OWN}", "39 rows for 40 images"),
    "fails": (f"extract dual-student --target torch:badmodels:raises {OWN}", "nonsense"),
    "takes another shape": (f"extract dual-student --target torch:badmodels:shape {OWN}", "failed on images"),
    "labels undeclared": (f"extract dual-student --target torch:badmodels:labels {OWN}", "--output labels"),
    "soft from labels": (
        f"extract dual-student --target torch:badmodels:good {OWN} --output labels --labels soft",
        "--labels hard",
    ),
    "bad bounds": (f"extract dual-student --target torch:badmodels:good {OWN} --bounds 1 0", "bounds"),
    "huge images": (
        f"extract dual-student --target torch:badmodels:good {OWN} --shape 1 99 99",
        "8 to 64",
    ),
    "wrong data shape": (
        "extract dual-student --target torch:badmodels:good --shape 1 9 9 --classes 4 --queries 9 --out {out}"
        " --data digits",
        "(1, 8, 8)",
    ),
    "out is a file": (f"extract dual-student {OURS} --out {{tmp}}/file", "is a file"),
    "out holds something": (
        f"extract dual-student {OURS} --out {{tmp}}/full --overwrite",
        "holds no run",
    ),
    "out cannot be made": (f"extract dual-student {OURS} --out /proc/nowhere/run", "cannot"),
    "no start": (f"extract dual-student {OURS} --start {{tmp}}/full", "student.json"),
    "no data folder": ("target train mnist --arch lenet5 --out {out}", "--data-dir"),
    "data folder missing": ("target train mnist --arch lenet5 --out {out} --data-dir {tmp}/no", "looked for"),
    "data missing": ("target train mnist --arch lenet5 --out {out} --data-dir {tmp}/full", "train.npz"),
    "unknown arch": ("target train digits --arch resnet9 --out {out}", "did you mean 'resnet8'"),
    "target verb": ("target tran digits", "did you mean 'train'"),
    "resume nothing": ("resume {tmp}/full", "no manifest.json"),
    "evaluate nothing": ("evaluate {tmp}/full --data digits", "no manifest.json"),
    "report nothing": ("report {tmp}/full --out {out}.html", "manifest.json"),
    "export nothing": ("export {tmp}/full --onnx {out}.onnx", "student.json"),
    "no data set": ("data get minst --data-dir {tmp}", "did you mean 'mnist'"),
    "data get nowhere": ("data get mnist", "--data-dir"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(
    case: str, place: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = CASES[case]
    code = main([word.format(**place) for word in words.split()])
    known = ("dualstudent: the target was in training mode", "training: ", "extracting: ")
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(known)]
    assert code == 2
    assert len(said) == 1, said
    assert said[0].startswith("dualstudent: ")
    assert expected in said[0]
    assert (Path(place["tmp"]) / "full" / "precious.txt").exists()


def test_another_run_is_never_overwritten_unasked(
    place: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["extract", "dual-student", *OURS.format(**place).split()]
    assert main(words) == 0
    before = {p: p.read_bytes() for p in Path(place["out"]).rglob("*") if p.is_file()}
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--student", "nonsense"]) == 2  # refused before deleting
    assert before == {p: p.read_bytes() for p in Path(place["out"]).rglob("*") if p.is_file()}
    assert main([*words, "--overwrite", "--seed", "1"]) == 0


def test_damaged_runs(place: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(place["out"])
    assert main(["extract", "dual-student", *OURS.format(**place).split()]) == 0
    answers = next((out / "answers").iterdir())
    damages = {
        "manifest.json": b"{",
        "result.json": b"[]",
        "attack.account": b"hello\n",
        "timing.json": b'{"wall_s": "long"}',
        "metrics.jsonl": b"nonsense\n",
        f"answers/{answers.name}": answers.read_bytes()[:50],
    }
    for name, damage in damages.items():
        copy = out.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        (copy / name).write_bytes(damage)
        capsys.readouterr()
        assert main(["resume", str(copy), "--queries", "200"]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert name in said[0]
        kept = json.loads((out / "manifest.json").read_text())
        if name != "manifest.json":
            assert json.loads((copy / "manifest.json").read_text()) == kept, (
                "nothing is written before all is read"
            )


def test_a_manifest_with_a_gap(place: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(place["out"])
    assert main(["extract", "dual-student", *OURS.format(**place).split()]) == 0
    values = json.loads((out / "manifest.json").read_text())
    del values["threads"]
    (out / "manifest.json").write_text(json.dumps(values))
    assert main(["resume", str(out), "--queries", "200"]) == 2
    assert "lacks threads" in capsys.readouterr().err


def test_lost_snapshots_are_never_paid_for_again(
    place: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(place["out"])
    assert main(["extract", "dual-student", *OURS.format(**place).split()]) == 0
    for path in out.glob("snapshot*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    bill = (out / "attack.account").read_bytes()
    for _ in range(2):
        capsys.readouterr()
        assert main(["resume", str(out), "--queries", "200"]) == 2
        assert "no usable snapshot, nothing was changed" in capsys.readouterr().err
    for path in out.glob("snapshot*.pt"):
        path.unlink()
    assert main(["resume", str(out), "--queries", "200"]) == 2
    assert "100 images are paid" in capsys.readouterr().err
    assert (out / "attack.account").read_bytes() == bill


def test_a_fault_of_ours_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(args: list[str]) -> int:
        raise KeyError("surprise")

    monkeypatch.setattr("dualstudent.cli.commands.list_command", broken)
    assert main(["list"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "a fault of this program, KeyError: 'surprise'" in said[0]
    monkeypatch.setenv("DUALSTUDENT_TRACE", "1")
    with pytest.raises(KeyError):
        main(["list"])


def test_a_target_that_changed_is_not_asked(
    place: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "mine"
    shutil.copytree(place["target"], target)
    words = OURS.format(target=target, out=place["out"]).split()
    assert main(["extract", "dual-student", *words]) == 0
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert main(["resume", place["out"], "--queries", "200"]) == 2
    assert "SHA-256" in capsys.readouterr().err


def test_module_in_training_mode_is_refused(tmp_path: Path) -> None:
    class Mine(nn.Module):
        spec = ds.Spec((1, 8, 8), 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 4), 0.25)

    with pytest.raises(ds.UserError, match="training mode"):
        ds.extract(ds.DualStudent(), Mine(), queries=100, out=tmp_path / "r")
    quick = ds.DualStudent(batch=8, width=4)
    assert ds.extract(quick, Mine().eval(), queries=100, out=tmp_path / "r").result["spent"] == 100


def test_no_space_loses_nothing(tmp_path: Path) -> None:
    """A full disk while writing the account: refused before anything is asked."""
    from dualstudent.ledger import Account

    account = Account("attack", 100, tmp_path / "account")
    (tmp_path / "account").symlink_to("/dev/full")
    with pytest.raises(ds.UserError, match="No space left on device"):
        account.charge(5)
    assert (account.spent, account.asked) == (0, 0)
