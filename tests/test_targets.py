"""Modules and callables as targets; whatever they do wrong is one line."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dualstudent as ds
from dualstudent.ledger import Account
from dualstudent.targets import Training, train
from dualstudent.targets.module import check_output, simplex

LABEL = ds.Access.LABEL
SPEC = ds.Spec((1, 8, 8), 3)


def images(n: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(dropout), nn.Linear(64, 3))


class Answers(nn.Module):
    """A module that answers with a function of the batch."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def asked(target: ds.Target, x: Tensor | None = None) -> Tensor:
    return ds.Oracle(target, Account("attack"))(images() if x is None else x)


class TestModuleTarget:
    def test_probabilities_logits_and_labels_are_the_same_classes(self) -> None:
        logits, x = network().eval(), images()
        p = logits(x).softmax(1)
        assert torch.allclose(asked(ds.ModuleTarget(network(), SPEC, output="logits")), p)
        plain = ds.ModuleTarget(nn.Sequential(*network(), nn.Softmax(1)), SPEC)
        assert torch.allclose(asked(plain), p)
        expected = nn.functional.one_hot(p.argmax(1), 3).float()
        for labels in (Answers(lambda x: logits(x).argmax(1)), network()):
            target = ds.ModuleTarget(labels, SPEC, output="labels")
            assert target.spec == ds.Spec((1, 8, 8), 3, access=LABEL)
            assert torch.equal(asked(target), expected)

    def test_set_to_eval_mode_and_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "dualstudent")
        module = network(dropout=0.5)
        target = ds.ModuleTarget(module, SPEC, output="logits")
        assert "eval mode" in caplog.text
        assert torch.equal(asked(target), asked(target))
        assert not any(part.training for part in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
        caplog.clear()
        ds.ModuleTarget(network().eval(), SPEC, output="logits")
        assert not caplog.text

    @pytest.mark.parametrize("part", [slice(None), slice(1, 2)])
    def test_put_back_into_training_mode_it_is_not_asked(self, part: slice) -> None:
        module = network()
        target = ds.ModuleTarget(module, SPEC, output="logits")
        module[part].train()
        before = {name: t.clone() for name, t in module.state_dict().items()}
        with pytest.raises(ds.TargetError, match="training mode"):
            asked(target)
        assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())

    def test_normalises_by_itself(self) -> None:
        x = images()
        target = ds.ModuleTarget(network(), SPEC, output="logits", normalise=((0.3,), (0.5,)))
        plain = network().eval()
        assert torch.allclose(asked(target, x), plain((x - 0.3) / 0.5).softmax(1))

    @pytest.mark.parametrize(
        "error", [RuntimeError("first line\nsecond line"), KeyError("first line"), OSError()]
    )
    def test_whatever_a_model_raises_is_one_line(self, error: Exception) -> None:
        def fail(x: Any) -> Any:
            raise error

        for target in (ds.ModuleTarget(Answers(fail), SPEC), ds.CallableTarget(fail, SPEC)):
            with pytest.raises(ds.TargetError, match=r"failed on images \(5, 1, 8, 8\)") as caught:
                asked(target)
            assert "\n" not in str(caught.value)
            assert ("first line" in str(caught.value)) or "OSError" in str(caught.value)

    def test_a_user_may_interrupt(self) -> None:
        def interrupt(x: Any) -> Any:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            asked(ds.CallableTarget(interrupt, SPEC))

    @pytest.mark.parametrize(
        ("output", "answer", "word"),
        [
            ("probabilities", lambda x: torch.zeros(len(x), dtype=torch.long), "--output labels"),
            ("probabilities", lambda x: [0.1, 0.9], "list"),
            ("probabilities", lambda x: torch.randn(len(x), 3) * 9, "--output logits"),
            ("logits", lambda x: torch.full((len(x), 3), float("nan")), "NaN or infinite logits"),
            ("logits", lambda x: torch.full((len(x), 3), float("inf")), "NaN or infinite logits"),
            ("logits", lambda x: torch.zeros(len(x), 4), "4 classes"),
            ("labels", lambda x: torch.full((len(x),), 3), "label 3, its spec has 3 classes"),
            ("labels", lambda x: torch.full((len(x),), -1), "no labels"),
            ("labels", lambda x: torch.full((len(x),), 0.5), "no labels"),
            ("labels", lambda x: torch.zeros(len(x), 1, 1), "no labels"),
            ("labels", lambda x: torch.zeros(len(x) + 1), "6 rows for 5 images"),
        ],
    )
    def test_answers_that_are_none(self, output: Any, answer: Callable[[Any], Any], word: str) -> None:
        with pytest.raises(ds.TargetError, match=word):
            asked(ds.ModuleTarget(Answers(answer), SPEC, output=output))

    def test_half_precision_is_enough(self) -> None:
        target = ds.ModuleTarget(Answers(lambda x: torch.tensor([[0.2, 0.3, 0.5]] * len(x)).half()), SPEC)
        assert asked(target).dtype == torch.float32


class TestCallableTarget:
    def test_gets_float32_arrays_and_may_give_any_numbers(self) -> None:
        seen: list[Any] = []

        def model(x: Any) -> Any:
            seen.append(x)
            return [[0.25, 0.25, 0.5]] * len(x)

        x = images()
        assert asked(ds.CallableTarget(model, SPEC), x).tolist() == [[0.25, 0.25, 0.5]] * 5
        assert isinstance(seen[0], np.ndarray)
        assert seen[0].dtype == np.float32
        assert np.array_equal(seen[0], x.numpy())

    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
    def test_probabilities_and_logits(self, dtype: type[np.generic]) -> None:
        row = np.array([0.125, 0.375, 0.5])
        p = asked(ds.CallableTarget(lambda x: np.tile(row, (len(x), 1)).astype(dtype), SPEC))
        assert p.tolist() == [row.tolist()] * 5
        logits = ds.CallableTarget(
            lambda x: np.tile(np.log(row), (len(x), 1)).astype(dtype), SPEC, output="logits"
        )
        assert torch.allclose(asked(logits), p, atol=1e-3)

    @pytest.mark.parametrize(
        "labels", [[0, 2, 1, 1, 0], np.array([0, 2, 1, 1, 0], np.uint8), np.array([0.0, 2, 1, 1, 0])]
    )
    def test_labels(self, labels: Any) -> None:
        target = ds.CallableTarget(lambda x: labels, SPEC, output="labels")
        assert target.spec.access == LABEL
        assert asked(target).argmax(1).tolist() == [0, 2, 1, 1, 0]
        assert asked(target).shape == (5, 3)

    def test_labels_of_an_unknown_number_of_classes(self) -> None:
        spec = ds.Spec((1, 8, 8), None)
        target = ds.CallableTarget(lambda x: np.arange(len(x)) * 2, spec, output="labels")
        assert asked(target).shape == (5, 9)
        assert asked(target).argmax(1).tolist() == [0, 2, 4, 6, 8]

    @pytest.mark.parametrize("answer", [None, "cat", ["cat"] * 5, object()])
    def test_what_is_no_number_is_refused(self, answer: Any) -> None:
        with pytest.raises(ds.TargetError, match="give numbers"):
            asked(ds.CallableTarget(lambda x: answer, SPEC))


class TestOutput:
    def test_an_unknown_kind_is_refused(self) -> None:
        with pytest.raises(ds.UserError, match="--output softmax: one of probabilities, logits, labels"):
            check_output("softmax")


def test_an_older_target_is_kept_until_the_new_one_is_trained(tmp_path: Path) -> None:
    ds.train_target("digits", "digits-cnn", tmp_path / "t", training=Training(epochs=1))
    before = (tmp_path / "t" / "target.json").read_bytes()

    def interrupt(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    again: dict[str, Any] = {"training": Training(epochs=1), "overwrite": True, "seed": 1}
    with pytest.raises(KeyboardInterrupt):
        ds.train_target("digits", "digits-cnn", tmp_path / "t", progress=interrupt, **again)
    assert (tmp_path / "t" / "target.json").read_bytes() == before
    ds.train_target("digits", "digits-cnn", tmp_path / "t", **again)
    assert (tmp_path / "t" / "target.json").read_bytes() != before


@pytest.mark.parametrize("label", [3 * 10**9, 2**62])
def test_a_label_beyond_all_classes_fills_no_memory(label: int) -> None:
    raw = torch.tensor([1, label])
    with pytest.raises(ds.TargetError, match=f"label {label}: no class is that far"):
        simplex(raw, "labels", None)
    assert simplex(torch.tensor([1, 5]), "labels", None).shape == (2, 6)


@pytest.mark.parametrize("side", [1, 6, 7])
def test_cutout_blanks_one_square_anywhere(side: int) -> None:
    torch.manual_seed(0)
    blank = (train._cut_out(torch.ones(2000, 2, 9, 12), side) == 0).all(1)
    assert (blank.any(2).sum(1) * blank.any(1).sum(1) == blank.sum((1, 2))).all(), "a rectangle"
    assert blank.sum((1, 2)).max() == side**2
    assert blank.sum((1, 2)).min() >= (side // 2) ** 2, "in part outside"
    assert blank.any(0).all()
    assert train._cut_out(torch.ones(2, 1, 8, 8), 0).all()


def test_a_square_as_large_as_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ds.UserError, match=r"--cutout 8: digits has images of 8×8 pixels"):
        ds.train_target("digits", "digits-cnn", tmp_path / "t", training=Training(epochs=1, cutout=8))
    with pytest.raises(ds.UserError, match="--cutout -1"):
        Training(cutout=-1)


def test_training_with_cutout_is_another_training(tmp_path: Path) -> None:
    shas = [
        ds.train_target(
            "digits", "digits-cnn", tmp_path / str(side), training=Training(epochs=1, cutout=side)
        )["sha256"]
        for side in (0, 3)
    ]
    assert shas[0] != shas[1]
