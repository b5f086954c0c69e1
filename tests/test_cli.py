"""The command line: every command does its job, every mistake is one line and exit code 2."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dualstudent as ds
from dualstudent import methods
from dualstudent.cli import main

QUICK = ["--batch", "16", "--width", "8", "--noise-size", "16", "--points", "4", "--threads", "1"]


def extract(target: Path, out: Path, *more: str, queries: str = "400") -> list[str]:
    options = ["--target", str(target), "--queries", queries, "--out", str(out)]
    return ["extract", "dual-student", *options, *QUICK, *more]


def read(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text())
    assert values["schema_version"] == 1
    return dict(values)


@pytest.fixture(scope="module")
def run(digits_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(extract(digits_target, out)) == 0
    return out


def test_extract_writes_what_it_promises(run: Path) -> None:
    result, manifest = read(run / "result.json"), read(run / "manifest.json")
    names = "method preset labels seed budget spent unique target_accuracy accuracy accuracy_each agreement"
    names += " kappa per_class l1 kl agreement_ci curve complete timing bill"
    assert set(names.split()) <= result.keys()
    assert (result["budget"], result["spent"], result["unique"], result["complete"]) == (400, 400, 400, True)
    assert result["curve"][-1]["queries"] == 400
    assert result["curve"][-1]["agreement"] == result["agreement"]
    assert result["bill"]["audit"] == 900
    assert result["bound"]["faults"] == []
    assert all(0 <= point["tightness"] <= 1 for point in result["curve"])
    assert manifest["recipe"]["batch"] == 16
    assert manifest["command"][:3] == ["dualstudent", "extract", "dual-student"]
    assert list((run / "figures").glob("asked-*.png"))
    assert sum(result["histogram"].values()) == 400


def test_student_is_a_plain_module_that_agrees_with_the_result(run: Path, digits_target: Path) -> None:
    clone, data = ds.load_student(run), ds.load_data("digits")
    target = ds.open_target(str(digits_target)).target
    with torch.inference_mode():
        logits, truth = clone(data.pixels()), target(data.pixels()).argmax(1)
        each = [student(data.pixels()) for student in clone.students]
    assert torch.allclose(logits, torch.stack(each).mean(0))
    result = read(run / "result.json")
    assert (logits.argmax(1) == truth).double().mean().item() == pytest.approx(result["agreement"], abs=2e-3)
    accuracies = [(one.argmax(1) == data.labels).double().mean().item() for one in each]
    assert accuracies == pytest.approx(result["accuracy_each"], abs=2e-3)


def test_same_command_same_result(digits_target: Path, run: Path, tmp_path: Path) -> None:
    assert main(extract(digits_target, tmp_path / "again")) == 0
    first, again = read(run / "result.json"), read(tmp_path / "again" / "result.json")
    first.pop("timing"), again.pop("timing")
    assert first == again
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "again" / "metrics.jsonl").read_bytes()


def test_hard_labels_without_data(digits_target: Path, tmp_path: Path) -> None:
    """A python: target that gives labels, no test images: the figures that need them are null."""
    code = "import numpy as np\ndef make():\n    return lambda x: (x.mean((1, 2, 3)) * 7).astype(int) % 3\n"
    (tmp_path / "mylabels.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        target = ["python:mylabels:make", *"--shape 1 9 11 --classes 3 --output labels --labels hard".split()]
        words = ["extract", "dual-student", "--target", *target, "--queries", "90"]
        assert main([*words, "--out", str(tmp_path / "r"), *QUICK, "--student", "resnet8"]) == 0
    result = read(tmp_path / "r" / "result.json")
    assert result["spent"] == 90
    assert result["accuracy"] is result["agreement"] is result["l1"] is result["kl"] is None
    assert result["bill"]["audit"] == 0
    assert result["bound"]["space"] == "labels"


def test_unknown_number_of_classes(digits_target: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    words = ["--labels", "hard", "--classes", "unknown", "--max-classes", "30"]
    assert main(extract(digits_target, out, *words)) == 0
    clone, result = ds.load_student(out), read(out / "result.json")
    assert clone.ids is not None
    seen = [i for i in clone.ids.tolist() if i >= 0]
    assert sorted(seen) == sorted(int(label) for label in result["histogram"])
    assert result["agreement"] is not None
    assert main(extract(digits_target, tmp_path / "soft", "--classes", "unknown")) == 2


def test_fine_tuning_from_a_run(run: Path, digits_target: Path, tmp_path: Path) -> None:
    """S1 is the given student, only S1 is judged, and the run needs its origin no more."""
    out = tmp_path / "tuned"
    assert main(extract(digits_target, out, "--start", str(run), "--rate-soft", "0", queries="64")) == 0
    result = read(out / "result.json")
    assert len(result["accuracy_each"]) == 1
    before, after = ds.load_student(run).students[0], ds.load_student(out).students[0]
    for name, weight in before.named_parameters():
        assert torch.equal(weight, dict(after.named_parameters())[name])
    assert (out / "start" / "student.json").is_file()
    assert main(["resume", str(out), "--queries", "128"]) == 0


def test_normalised_space(digits_target: Path, tmp_path: Path) -> None:
    assert main(extract(digits_target, tmp_path / "r", "--space", "normalised")) == 0
    result, manifest = read(tmp_path / "r" / "result.json"), read(tmp_path / "r" / "manifest.json")
    assert manifest["target"]["spec"]["bounds"] == [-1.0, 1.0]
    pixels = read(tmp_path / "r" / "manifest.json")
    assert pixels["target"]["options"]["space"] == "normalised"
    assert result["target_accuracy"] == pytest.approx(
        read(digits_target / "target.json")["test_accuracy"], abs=2e-3
    )


def test_evaluate_adds_figures(run: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(run), "--data", "digits", "--split", "train"]) == 0
    result = read(run / "result.json")
    added = result["evaluations"][-1]
    assert (added["split"], added["images"]) == ("train", 897)
    assert result["bill"]["audit"] == 900 + 897
    assert main(["evaluate", str(run), "--data", "digits", "--split", "train"]) == 0
    assert read(run / "result.json")["bill"]["audit"] == 900 + 897  # nothing is asked twice
    assert len(read(run / "result.json")["evaluations"]) == len(result["evaluations"])


def test_report_and_export(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    assert "400" in (tmp_path / "r.html").read_text()
    assert main(["export", str(run), "--onnx", str(tmp_path / "clone.onnx")]) == 0
    onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    session = onnxruntime.InferenceSession(str(tmp_path / "clone.onnx"))
    for images in (1, 5):
        x = np.random.default_rng(0).random((images, 1, 8, 8), dtype=np.float32)
        (answer,) = session.run(None, {"images": x})
        with torch.inference_mode():
            expected = ds.load_student(run)(torch.from_numpy(x)).softmax(1).numpy()
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_plan_and_list_and_check(
    digits_target: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--target", str(digits_target), "--queries", "1k", *QUICK[:6]]
    assert main(["plan", "dual-student", *options]) == 0
    said = capsys.readouterr().out
    assert re.search(r"all\D+13\D+1,000", said)
    assert "estimated time" in said
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["methods"][0]["name"] == "dual-student"
    assert listed["methods"][0]["queries_per_step"]["paper"] == 1280
    assert main(["list"]) == 0
    assert main(["target", "check", str(digits_target), "--data", "digits"]) == 0
    said = capsys.readouterr().out
    assert "908" in said  # 8 images of noise and 900 of the test split


def test_help_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    for words in (["extract", "dual-student"], ["resume"], ["target", "train"], ["report"], ["demo"]):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--help"])
        assert stop.value.code == 0
    assert "generator-rate" in capsys.readouterr().out


def test_third_parties_register_methods(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], digits_target: Path, tmp_path: Path
) -> None:
    """One entry point, and the command line has the method with its options and presets."""
    from importlib.metadata import EntryPoint

    code = "from dataclasses import dataclass\nfrom typing import ClassVar\nimport dualstudent as ds\n"
    code += "@dataclass(frozen=True)\nclass Mine(ds.DualStudent):\n    'Mine.'\n    gain: float = 1.0\n"
    code += "    name: ClassVar[str] = 'mine'\n    presets: ClassVar[dict] = {'plain': {'batch': 16}}\n"
    (tmp_path / "thirdparty.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("mine", "thirdparty:Mine", "dualstudent.methods")
    monkeypatch.setattr("dualstudent.plugins.entry_points", lambda group: [point])
    assert main(["list", "--json"]) == 0
    names = [m["name"] for m in json.loads(capsys.readouterr().out)["methods"]]
    assert names == [*(method.name for method in methods.BUILT_IN), "mine"]
    words = extract(digits_target, tmp_path / "r", "--gain", "2", queries="50")
    words[1] = "mine"
    assert main(words) == 0
    assert read(tmp_path / "r" / "manifest.json")["recipe"]["gain"] == 2.0
    assert main(["resume", str(tmp_path / "r"), "--queries", "90"]) == 0


def test_tensorboard_events(digits_target: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    assert main(extract(digits_target, tmp_path / "r", "--tensorboard", queries="100")) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "r" / "tensorboard")).Reload()
    assert "evaluation/agreement" in events.Tags()["scalars"]
    assert events.Scalars("evaluation/agreement")[-1].step == 100


def test_own_student(digits_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from torch import nn\ndef make(shape, classes):\n"
    code += "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
    (tmp_path / "ownstudent.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = extract(digits_target, tmp_path / "r", "--student", "torch:ownstudent:make", queries="100")
    assert main(words) == 0
    assert ds.load_student(tmp_path / "r")(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_data_get_without_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No internet, or a server that refuses: one line, exit code 2, nothing left behind."""
    import dualstudent.data.download as download

    with pytest.MonkeyPatch.context() as patch:
        table = {
            name: tuple(
                type(entry)(entry.file, ("http://127.0.0.1:9/",), entry.md5, entry.source) for entry in files
            )
            for name, files in download.DOWNLOADS.items()
        }
        patch.setattr(download, "DOWNLOADS", table)
        assert main(["data", "get", "mnist", "--data-dir", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    said = [line for line in lines if not line.startswith("Downloading data from")]
    assert len(said) == 1
    assert "cannot download http://127.0.0.1:9/" in said[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", methods.registry())
@pytest.mark.parametrize("command", ["extract", "plan"])
def test_every_method_has_options_of_names_of_their_own(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method's learning rate beside a service's --rate, say: two of one name would end in an error."""
    with pytest.raises(SystemExit) as stop:
        main([command, name, "--help"])
    assert stop.value.code == 0
    options = re.findall(r"^[│ ]*(--[a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE)
    assert {"--rate", "--target", "--shape"} <= set(options)
    assert len(options) == len(set(options))


@pytest.mark.parametrize("name", methods.registry())
def test_every_option_of_a_method_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the comment beside it, which a formatter may have moved away from it."""
    with pytest.raises(SystemExit):
        main(["extract", name, "--help"])
    mine = {f"--{field.name.replace('_', '-')}" for field in fields(methods.find(name))}
    rows = re.split(r"^[│ ]*(--[a-z][a-z-]*)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    told = dict(zip(rows[::2], rows[1::2], strict=True))
    assert len(mine & told.keys()) > 4
    assert not [o for o in mine & told.keys() if not re.search("[a-z]{3}", told[o].partition("(default")[0])]
