"""Files from strangers: nothing in them is unpickled or run, and no path in them leads out of a run."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dualstudent as ds
from dualstudent import engine
from dualstudent.cli import main
from dualstudent.data import load_data
from dualstudent.experiment.folder import RunFolder
from dualstudent.files import read_json, read_tensors
from dualstudent.plugins import load_object
from dualstudent.report import render
from dualstudent.sweep import read_sweep
from dualstudent.targets import open_target

QUICK = ["--batch", "16", "--width", "8", "--noise-size", "16", "--points", "2", "--threads", "1"]
VALUES: list[Any] = ["../../secret", -1, 10**13, 1e308, None, [], {}, True, [[1]], "torch:evil:make"]


class Bomb:
    """A pickle that would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def begun(digits_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("strangers") / "run"
    options = ["--target", str(digits_target), "--queries", "100", "--out", str(out), "--device", "cpu"]
    assert main(["extract", "dual-student", *options, *QUICK]) == 0
    return out


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture
def pickled(tmp_path: Path) -> Iterator[bytes]:
    """What would leave a mark if anyone unpickled it; nobody may have."""
    mark = tmp_path / "was unpickled"
    yield pickle.dumps(Bomb(mark))
    assert not mark.exists()


class TestPickles:
    def test_as_weights(self, run: Path, digits_target: Path, tmp_path: Path, pickled: bytes) -> None:
        (run / "student" / "model.safetensors").write_bytes(pickled)
        with pytest.raises(ds.UserError, match="cannot read"):
            ds.load_student(run)
        target = tmp_path / "target"
        shutil.copytree(digits_target, target)
        (target / "model.safetensors").write_bytes(pickled)
        with pytest.raises(ds.UserError, match=r"another SHA-256"):
            open_target(str(target))
        [answers] = (run / "answers").iterdir()
        answers.write_bytes(pickled)
        with pytest.raises(ds.UserError, match="cannot read"):
            read_tensors(answers)

    @pytest.mark.parametrize("plain", [True, False])
    def test_as_snapshots(self, plain: bool, run: Path, tmp_path: Path, pickled: bytes) -> None:
        mark = Bomb(tmp_path / "was unpickled")
        for name in ("snapshot.pt", "snapshot.previous.pt"):
            if plain:
                (run / name).write_bytes(pickled)
            else:
                torch.save({"format": "dualstudent snapshot 1", "state": mark}, run / name)
        with pytest.raises(ds.UserError, match="truncated or no snapshot"):
            ds.resume(run, queries=200)

    def test_as_an_onnx_model(self, tmp_path: Path, pickled: bytes) -> None:
        (tmp_path / "m.onnx").write_bytes(pickled)
        with pytest.raises(ds.UserError, match="no ONNX model"):
            open_target(f"onnx:{tmp_path / 'm.onnx'}")

    def test_as_images(self, tmp_path: Path, pickled: bytes) -> None:
        mark = Bomb(tmp_path / "was unpickled")
        hostile: Any = np.array([mark], dtype=object)
        np.savez(tmp_path / "test.npz", images=hostile, labels=hostile)
        with pytest.raises(ds.UserError, match="damaged or of another kind"):
            load_data(tmp_path)
        (tmp_path / "test.npz").write_bytes(pickled)
        with pytest.raises(ds.UserError, match="damaged or of another kind"):
            load_data(tmp_path)

    @pytest.mark.parametrize("name", ["manifest.json", "result.json", "timing.json", "metrics.jsonl"])
    def test_as_anything_else_of_a_run(self, name: str, run: Path, tmp_path: Path, pickled: bytes) -> None:
        (run / name).write_bytes(pickled + b"\n")
        with pytest.raises(ds.UserError, match=name):
            render([run], tmp_path / "x.html") if name != "timing.json" else ds.resume(run, queries=200)


class TestPaths:
    @pytest.mark.parametrize(
        "name",
        ["result.json.tmp", "metrics.jsonl", "shown.bin", "attack.account", "snapshot.pt.tmp", "figures"],
    )
    def test_a_link_out_of_a_run_is_never_written_through(
        self, name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        outside = tmp_path / "precious"
        outside.mkdir()
        (outside / "letter").write_text("dear")
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(outside if name == "figures" else outside / "letter")
        for command in (
            ["resume", str(run), "--queries", "200"],
            ["evaluate", str(run), "--data", "digits"],
            ["report", str(run), "--out", str(tmp_path / "page.html")],
        ):
            assert main(command) == 2
            assert "is a link out of" in capsys.readouterr().err
        assert [path.name for path in outside.iterdir()] == ["letter"]
        assert (outside / "letter").read_text() == "dear"

    def test_links_inside_of_a_run_and_to_it_are_fine(self, run: Path, tmp_path: Path) -> None:
        (run / "latest.png").symlink_to(next((run / "figures").iterdir()))
        (tmp_path / "elsewhere").symlink_to(run)
        assert RunFolder(tmp_path / "elsewhere").manifest()["method"] == "dual-student"

    @pytest.mark.parametrize("inner", ["", "student", "deep/er"])
    def test_code_in_a_run_is_not_run(
        self, inner: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stranger's run names a module, and brings it along: it must not come to that."""
        place = run / inner
        place.mkdir(parents=True, exist_ok=True)
        (place / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef make(*a): return 1\n")
        about = read_json(run / "student" / "student.json")
        (run / "student" / "student.json").write_text(json.dumps(about | {"arch": "torch:stranger:make"}))
        manifest = read_json(run / "manifest.json")
        manifest["target"]["reference"] = "python:stranger:make"
        (run / "manifest.json").write_text(json.dumps(manifest))
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(ds.UserError, match="code there is not run"):
            ds.load_student(run)
        with pytest.raises(ds.UserError, match="code there is not run"):
            ds.resume(run, queries=200)
        assert not (tmp_path / "ran").exists()

    def test_code_beside_a_run_is(self, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "beside_a_run.py").write_text("def make(): return 42\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert load_object("beside_a_run:make")() == 42

    @pytest.mark.parametrize("name", ["../../out", "a/b", "a\\b", "..", ""])
    def test_names_in_a_sweep_are_no_paths(self, name: str, tmp_path: Path, digits_target: Path) -> None:
        text = (
            '[[targets]]\npath = "{}"\nname = {}\n[[methods]]\nmethod = "noise"\nbudgets = [100]\nname = {}\n'
        )
        for target, method in ((name, "m"), ("t", name)):
            spec = tmp_path / "spec.toml"
            spec.write_text(text.format(digits_target, json.dumps(target), json.dumps(method)))
            with pytest.raises(ds.UserError, match="it is a folder's name too"):
                read_sweep(spec)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside of a JSON object."""
    if path:
        yield path
    inner = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for key, value in inner:
        yield from places(value, (*path, key))


def changed(values: dict[str, Any], path: tuple[Any, ...], value: Any) -> str:
    values = json.loads(json.dumps(values))
    inner: Any = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(values)


class Ran(Exception):
    """A run would have begun: all that its manifest says is possible."""


class TestValues:
    """Any value in place of any other: what can still be read is read, all else is a UserError."""

    def test_in_a_student(self, run: Path) -> None:
        file = run / "student" / "student.json"
        values = read_json(file)
        for path in places(values):
            for value in VALUES:
                file.write_text(changed(values, path, value))
                with suppress(ds.UserError):
                    ds.load_student(run)

    def test_in_a_target(self, digits_target: Path, tmp_path: Path) -> None:
        target = shutil.copytree(digits_target, tmp_path / "target")
        file = Path(target) / "target.json"
        values = read_json(file)
        for path in places({k: v for k, v in values.items() if k != "classes"}):
            for value in VALUES:
                file.write_text(changed(values, path, value))
                with suppress(ds.UserError):
                    open_target(str(target))

    @pytest.mark.parametrize("key", ["threads", "device", "points", "ranks", "numerics", "target", "data"])
    def test_in_a_manifest(self, key: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        values = read_json(run / "manifest.json")

        def ran(*a: Any, **k: Any) -> None:
            raise Ran

        monkeypatch.setattr(engine, "run", ran)
        for path in (p for p in places(values) if p[0] == key):
            for value in VALUES[:7]:
                (run / "manifest.json").write_text(changed(values, path, value))
                with suppress(ds.UserError, Ran):
                    ds.resume(run, queries=200)

    @pytest.mark.parametrize("budgets", [[], [0], [-5], [True], ["9"], [1e9], [None], [10**15], "9", None])
    def test_in_the_budgets(self, budgets: Any, run: Path) -> None:
        (run / "manifest.json").write_text(changed(read_json(run / "manifest.json"), ("budgets",), budgets))
        with pytest.raises(ds.UserError, match="budgets cannot be"):
            ds.resume(run)

    def test_nested_without_end(self, run: Path, tmp_path: Path) -> None:
        deep = "[" * 100_000 + "]" * 100_000
        for name in ("manifest.json", "result.json"):
            before = (run / name).read_text()
            (run / name).write_text(deep)
            with pytest.raises(ds.UserError, match=name):
                render([run], tmp_path / "page.html")
            (run / name).write_text(before)
        (run / "metrics.jsonl").write_text(deep + "\n")
        with pytest.raises(ds.UserError, match=r"metrics\.jsonl"):
            render([run], tmp_path / "page.html")

    def test_memory_that_nobody_has_is_one_line(self, run: Path) -> None:
        file = run / "student" / "student.json"
        values = read_json(file)
        values["outputs"] = values["spec"]["classes"] = 10**7
        file.write_text(json.dumps(values))
        code = "import resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        code += "from dualstudent.cli import main\nsys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "export", str(run), "--onnx", str(run / "x.onnx")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert "out of memory" in done.stderr
        assert done.stderr.count("\n") == 1
