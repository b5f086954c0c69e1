"""Targets opened by reference, trained ones in their folder, and what a check finds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent.ledger import Account
from dualstudent.targets import TargetOptions, Training, check_target, open_target

OPTIONS = TargetOptions(shape=(1, 8, 8), classes=3)


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def asked(target: ds.Target, x: Tensor | None = None) -> Tensor:
    return ds.Oracle(target, Account("attack"))(images() if x is None else x)


MODULE = """
import numpy as np
import torch
from torch import nn
import dualstudent as ds

def logits():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def probabilities():
    return nn.Sequential(logits(), nn.Softmax(1))

def callable():
    return lambda x: np.full((len(x), 3), 1 / 3, np.float32)

class Whole:
    spec = ds.Spec((1, 8, 8), 5, levels=16)
    def __call__(self, x, /):
        return torch.full((len(x), 5), 0.2)

def number():
    return 42
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> str:
    (tmp_path_factory.mktemp("modules") / "my_own_targets.py").write_text(MODULE)
    return str(tmp_path_factory.getbasetemp() / "modules0")


@pytest.fixture
def own(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(module)


@pytest.mark.usefixtures("own")
class TestReferences:
    def test_a_torch_module(self) -> None:
        opened = open_target("torch:my_own_targets:probabilities", OPTIONS)
        assert opened.target.spec == ds.Spec((1, 8, 8), 3)
        assert (opened.reference, opened.name) == ("torch:my_own_targets:probabilities", "probabilities")
        logits = open_target("torch:my_own_targets:logits", TargetOptions((1, 8, 8), 3, output="logits"))
        assert torch.allclose(asked(opened.target), asked(logits.target))

    def test_a_callable(self) -> None:
        opened = open_target(
            "python:my_own_targets:callable", TargetOptions((1, 8, 8), 3, bounds=(-1.0, 1.0))
        )
        assert opened.target.spec.bounds == (-1.0, 1.0)
        assert asked(opened.target).shape == (5, 3)

    def test_a_target_that_says_itself_what_it_takes(self) -> None:
        opened = open_target("python:my_own_targets:Whole")
        assert opened.target.spec == ds.Spec((1, 8, 8), 5, levels=16)
        assert asked(opened.target).shape == (5, 5)

    def test_levels_are_those_that_are_sent(self) -> None:
        options = TargetOptions((1, 8, 8), 3, levels=256)
        opened = open_target("torch:my_own_targets:probabilities", options)
        assert opened.target.spec == ds.Spec((1, 8, 8), 3, levels=256)
        assert torch.equal(asked(opened.target), opened.target((images() * 255).round() * (1 / 255)))

    def test_labels_of_an_unknown_number_of_classes(self) -> None:
        options = TargetOptions((1, 8, 8), "unknown", output="labels")
        target = open_target("torch:my_own_targets:logits", options).target
        assert target.spec == ds.Spec((1, 8, 8), None, access=ds.Access.LABEL)

    @pytest.mark.parametrize(
        ("reference", "options", "word"),
        [
            ("nowhere", OPTIONS, "no target 'nowhere'"),
            ("torch:", OPTIONS, "no target 'torch:'"),
            ("onnx:", OPTIONS, "no target 'onnx:'"),
            ("onnx:model", OPTIONS, "no file model"),
            ("torch:my_own_targets:logits", TargetOptions((1, 8, 8), 3, levels=1), "1 input levels"),
            (
                "torch:my_own_targets:logits",
                TargetOptions((1, 8, 8), 3, layout="nhwc"),
                "--layout does not fit",
            ),
            ("python:my_own_targets:Whole", TargetOptions(output_name="p"), "--output-name does not fit"),
            (
                "python:my_own_targets:Whole",
                TargetOptions(levels=256),
                "--levels does not fit .* spec of its own",
            ),
            ("torch:my_own_targets", OPTIONS, "package.module:factory"),
            ("torch:my_own_target:logits", OPTIONS, "cannot import 'my_own_target'"),
            ("torch:my_own_targets:logit", OPTIONS, "has no 'logit'"),
            ("torch:my_own_targets:logits", None, "--shape C H W and --classes K"),
            ("torch:my_own_targets:logits", TargetOptions(shape=(1, 8, 8)), "--classes"),
            ("torch:my_own_targets:logits", TargetOptions(classes=3), "--shape"),
            ("torch:my_own_targets:logits", TargetOptions((1, 8, 8), 1), "1 classes"),
            ("torch:my_own_targets:logits", TargetOptions((1, 0, 8), 3), "shape"),
            ("torch:my_own_targets:callable", OPTIONS, "a function, not a torch.nn.Module"),
            ("python:my_own_targets:number", OPTIONS, "a int, which cannot be called"),
        ],
    )
    def test_mistakes(self, reference: str, options: TargetOptions | None, word: str) -> None:
        with pytest.raises(ds.UserError, match=word) as caught:
            open_target(reference, options)
        assert "\n" not in str(caught.value)


@pytest.fixture
def copy(digits_target: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_target, tmp_path / "target"))


class TestFolder:
    def test_what_training_wrote(self, digits_target: Path) -> None:
        opened = open_target(str(digits_target))
        about = json.loads((digits_target / "target.json").read_text())
        assert opened.target.spec == ds.Spec((1, 8, 8), 10)
        assert (opened.name, opened.data) == ("digits-cnn on digits", "digits")
        assert (opened.sha256, len(about["sha256"])) == (about["sha256"], 64)
        test = ds.load_data("digits")
        guess = asked(opened.target, test.pixels()).argmax(1)
        assert (guess == test.labels).double().mean().item() == about["test_accuracy"] > 0.5

    def test_both_spaces_are_one_model(self, digits_target: Path) -> None:
        pixels = open_target(str(digits_target)).target
        normalised = open_target(str(digits_target), TargetOptions(space="normalised")).target
        assert normalised.spec.bounds == (-1.0, 1.0)
        x = images(20)
        inside = normalised.spec.encode(x).clamp(-1, 1)  # what an attacker can reach
        about = json.loads((digits_target / "target.json").read_text())["normalise"]
        back = inside * about["std"][0] + about["mean"][0]
        assert torch.allclose(asked(normalised, inside), asked(pixels, back), atol=1e-5)
        assert torch.allclose(normalised(normalised.spec.encode(x)), asked(pixels, x), atol=1e-5)
        assert not torch.allclose(asked(normalised, inside), asked(pixels, inside.clamp(0, 1)), atol=1e-2)

    def test_classes_may_be_withheld(self, digits_target: Path) -> None:
        assert open_target(str(digits_target), TargetOptions(classes="unknown")).target.spec.classes is None
        assert open_target(str(digits_target), TargetOptions(classes=10)).target.spec.classes == 10
        with pytest.raises(ds.UserError, match="--classes 9: the target has 10"):
            open_target(str(digits_target), TargetOptions(classes=9))

    @pytest.mark.parametrize("options", [TargetOptions(shape=(1, 8, 8)), TargetOptions(bounds=(0.0, 1.0))])
    def test_what_it_says_itself_is_not_to_be_said_again(
        self, options: TargetOptions, digits_target: Path
    ) -> None:
        with pytest.raises(ds.UserError, match="leave it out"):
            open_target(str(digits_target), options)

    def test_levels_of_a_trained_one(self, digits_target: Path) -> None:
        assert open_target(str(digits_target), TargetOptions(levels=256)).target.spec.levels == 256
        with pytest.raises(ds.UserError, match="--levels counts those of pixels"):
            open_target(str(digits_target), TargetOptions(levels=256, space="normalised"))

    def test_other_weights_are_not_the_target(self, copy: Path) -> None:
        weights = copy / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        with pytest.raises(ds.UserError, match="another SHA-256"):
            open_target(str(copy))
        weights.unlink()
        with pytest.raises(ds.UserError, match=r"model\.safetensors is missing"):
            open_target(str(copy))

    @pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"spec": 3}'])
    def test_a_damaged_description(self, content: str | None, copy: Path) -> None:
        (copy / "target.json").unlink()
        if content is not None:
            (copy / "target.json").write_text(content)
        with pytest.raises(ds.UserError, match=r"target\.json|not a spec"):
            open_target(str(copy))

    @pytest.mark.parametrize("missing", ["spec", "normalise", "arch", "sha256"])
    def test_an_incomplete_description(self, missing: str, copy: Path) -> None:
        about = json.loads((copy / "target.json").read_text())
        del about[missing]
        (copy / "target.json").write_text(json.dumps(about))
        with pytest.raises(ds.UserError, match=f"describes no target: '{missing}'"):
            open_target(str(copy))

    @pytest.mark.parametrize(("arch", "word"), [("resnet8", "another network"), ("resnet9", "did you mean")])
    def test_another_architecture(self, arch: str, word: str, copy: Path) -> None:
        about = json.loads((copy / "target.json").read_text())
        (copy / "target.json").write_text(json.dumps(about | {"arch": arch}))
        with pytest.raises(ds.UserError, match=word):
            open_target(str(copy))

    def test_training_never_overwrites_unasked(self, copy: Path, tmp_path: Path) -> None:
        before = (copy / "model.safetensors").read_bytes()
        with pytest.raises(ds.UserError, match="--overwrite"):
            ds.train_target("digits", "digits-cnn", copy, training=Training(epochs=1))
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "letter.txt").write_text("dear")
        (tmp_path / "file").write_text("dear")
        for out in (tmp_path / "precious", tmp_path / "file"):
            with pytest.raises(ds.UserError, match="something else"):
                ds.train_target("digits", "digits-cnn", out, training=Training(epochs=1), overwrite=True)
        with pytest.raises(ds.UserError, match="did you mean"):
            ds.train_target("digits", "digits-cn", copy, overwrite=True)
        assert (copy / "model.safetensors").read_bytes() == before
        assert (tmp_path / "precious" / "letter.txt").read_text() == (tmp_path / "file").read_text() == "dear"

    def test_training_is_a_function_of_its_seed(self, tmp_path: Path) -> None:
        def train(name: str, seed: int) -> str:
            torch.rand(3)
            short = Training(epochs=1, batch=60)
            return str(
                ds.train_target("digits", "digits-cnn", tmp_path / name, seed=seed, training=short)["sha256"]
            )

        first = train("a", 1)
        assert train("b", 1) == first
        assert train("c", 2) != first


class TestCheck:
    def test_charges_what_it_says(self, linear: Callable[..., Linear]) -> None:
        target, account = linear((1, 8, 8), 10), Account("audit")
        found = check_target(target, account)
        assert target.seen == account.spent == found.images > 0
        assert found.accuracy is None
        assert found.spec == target.spec.to_json()
        for top, p in found.answers:
            assert 0 <= top < 10
            assert 0.1 <= p <= 1
        assert len(found.answers) == target.seen

        target, account, data = linear((1, 8, 8), 10), Account("audit"), ds.load_data("digits")[:50]
        found = check_target(target, account, data)
        assert target.seen == account.spent == found.images == len(found.answers) + 50
        expected = (target(data.pixels()).argmax(1) == data.labels).double().mean().item()
        assert found.accuracy == expected

    def test_probes_are_inside_the_bounds(self, linear: Callable[..., Linear]) -> None:
        check_target(linear(bounds=(-3.0, -2.0)), Account("audit"))

    def test_says_what_is_wrong(self) -> None:
        with pytest.raises(ds.TargetError, match="--output logits"):
            check_target(
                ds.CallableTarget(lambda x: [[-4.0] * 3] * len(x), ds.Spec((1, 8, 8), 3)), Account("audit")
            )
