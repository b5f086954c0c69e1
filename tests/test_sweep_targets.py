"""Targets of a sweep: trained by it with options of their own, or elsewhere."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from dualstudent import sweep as sweeps
from dualstudent.errors import Stopped, UserError
from dualstudent.sweep.work import work
from onnx_fixture import build
from sweep_fixture import Executor, Write

ONE = {"[0, 1]": "[0]", '["soft", "hard"]': '["soft"]', '[40, "0.06k"]': "[40]"}  # a single run


def refused(path: Path, said: str) -> None:
    """A cell that was done with other words in the file is refused, and why is said."""
    with pytest.raises(UserError, match=said):
        sweeps.state(sweeps.read_sweep(path).cells[0])


def test_targets_with_options_training_and_precision(write: Write, at_once: Executor, tmp_path: Path) -> None:
    path = write(
        **{
            'path = "': 'training = { epochs = 1, batch = 100 }\ndata = "digits"\narch = "digits-cnn"\n'
            'split = "train"\noptions = { space = "normalised" }\n#',
            "points = 2": 'points = 1\nprecision = "bf16"',
            **ONE,
        }
    )
    sweep = sweeps.read_sweep(path)
    assert sweeps.start(sweep).failed == {}
    about = json.loads((tmp_path / "out" / "targets" / "digits" / "target.json").read_text())
    assert about["epochs"] == 1
    manifest = json.loads((Path(sweep.cells[0].path) / "manifest.json").read_text())
    assert manifest["target"]["options"]["space"] == "normalised"
    assert manifest["data"]["split"] == "train"
    assert manifest["numerics"]["precision"] == "bf16"
    assert sweeps.state(sweeps.read_sweep(path).cells[0]) == "done"
    record = tmp_path / "out" / "targets" / "digits" / "sweep.json"
    older = json.loads(record.read_text())
    del older["training"]["cutout"]
    record.write_text(json.dumps(older))
    assert sweeps.state(sweeps.read_sweep(path).cells[0]) == "done", "an option that has come since"
    text = path.read_text()
    for old, new, said in (
        ('"bf16"', '"fp32"', "another precision"),
        ('split = "train"', "", "another split"),
        ('"normalised"', '"pixels"', "another target options"),
    ):
        path.write_text(text.replace(old, new))
        refused(path, said)
    path.write_text(text.replace("epochs = 1", "epochs = 2"))
    refused(path, "another target")
    path.write_text(
        path.read_text().replace("seeds = [5]", "seeds = [6]").replace("seeds = [0]", "seeds = [7]")
    )
    with pytest.raises(UserError, match="was trained otherwise than the sweep says"):
        sweeps.start(sweeps.read_sweep(path))


OWN = {
    'path = "': 'training = { epochs = 2, batch = 100 }\ndata = "digits"\narch = "digits-cnn"\n#',
    **ONE,
}


def test_data_are_looked_for_before_a_target_is_trained(
    write: Write, at_once: Executor, tmp_path: Path
) -> None:
    """An hour of training would be for nothing where the next target has none."""
    path = write(**OWN)
    second = '[[targets]]\nname = "more"\ndata = "no/such/folder"\narch = "digits-cnn"\n'
    path.write_text(path.read_text() + second)
    with pytest.raises(UserError, match="no/such/folder"):
        sweeps.start(sweeps.read_sweep(path))
    assert not (tmp_path / "out" / "targets" / "digits").exists()
    assert not at_once.jobs


def test_a_target_stops_after_an_epoch(write: Write, at_once: Executor, tmp_path: Path) -> None:
    sweep = sweeps.read_sweep(write(**OWN))
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return True

    assert sweeps.start(sweep, stop=stop).stopped
    assert asked == [1]
    assert not (tmp_path / "out" / "targets" / "digits" / "target.json").exists()
    assert not at_once.jobs
    assert sweeps.start(sweep).failed == {}, "and begins anew"


def test_a_stopped_run_on_a_target_of_its_own_goes_on_elsewhere(
    write: Write, at_once: Executor, tmp_path: Path
) -> None:
    path = write(**{**OWN, "[40]": "[400]"})
    cell = sweeps.read_sweep(path).cells[0]
    at_once.fail = "digits"
    assert len(sweeps.start(sweeps.read_sweep(path)).failed) == 2  # its target is there now
    with pytest.raises(Stopped):
        work(asdict(cell), stop=lambda: True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("out", "spec.toml"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = sweeps.read_sweep(tmp_path / "elsewhere" / "spec.toml").cells[0]
    assert sweeps.state(moved) == "stopped"
    work(asdict(moved))
    assert sweeps.state(moved) == "done"


def test_a_target_elsewhere(write: Write, at_once: Executor, tmp_path: Path) -> None:
    """An ONNX model beside the file, judged on the data that are named; another model is refused."""
    shape = (1, 8, 8)
    outputs = (("p", "float32", ("n", 10)),)
    build(tmp_path / "model.onnx", shape=shape, classes=10, dims=("n", *shape), outputs=outputs)
    path = write(
        **{
            'path = "': 'target = "onnx:model.onnx"\ndata = "digits"\n#',
            **ONE,
        }
    )
    sweep = sweeps.read_sweep(path)
    assert sweeps.start(sweep).failed == {}
    run = Path(sweep.cells[0].path)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["target"]["reference"] == f"onnx:{tmp_path / 'model.onnx'}"
    assert manifest["data"]["name"] == "digits"
    assert json.loads((run / "result.json").read_text())["agreement"] is not None
    assert sweeps.state(sweeps.read_sweep(path).cells[0]) == "done"
    for old, new, said in (
        ('data = "digits"', 'data = "mnist"', "another data"),
        ("onnx:model.onnx", "torch:some.module:factory", "another target"),
    ):
        path.write_text(path.read_text().replace(old, new))
        refused(path, said)
        path.write_text(path.read_text().replace(new, old))
    build(tmp_path / "model.onnx", shape=shape, classes=10, dims=("m", *shape), outputs=outputs)
    refused(path, "another target")


def test_weights_beside_a_model_belong_to_it(write: Write, at_once: Executor, tmp_path: Path) -> None:
    """Other weights under the same graph are another target; a stopped run goes on where all lies now."""
    shape, outputs = (1, 8, 8), (("p", "float32", ("n", 10)),)
    (tmp_path / "model").mkdir()
    build(
        tmp_path / "model" / "m.onnx",
        shape=shape,
        classes=10,
        dims=("n", *shape),
        outputs=outputs,
        external="w",
    )
    path = write(
        **{
            'path = "': 'target = "onnx:model/m.onnx"\ndata = "digits"\n#',
            **ONE,
            '[40, "0.06k"]': "[400]",
        }
    )
    cell = sweeps.read_sweep(path).cells[0]
    with pytest.raises(Stopped):
        work(asdict(cell), stop=lambda: True)
    assert sweeps.state(cell) == "stopped"
    (tmp_path / "elsewhere").mkdir()
    for name in ("model", "out", "spec.toml"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = sweeps.read_sweep(tmp_path / "elsewhere" / "spec.toml")
    work(asdict(moved.cells[0]))
    assert sweeps.state(moved.cells[0]) == "done"
    weights = tmp_path / "elsewhere" / "model" / "w"
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(UserError, match="another target"):
        sweeps.state(moved.cells[0])
