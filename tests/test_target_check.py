"""`target check`: eight images tell what a target does, how fast, at what price, and what looks wrong."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dualstudent as ds
from conftest import Linear
from dualstudent.cli import main
from dualstudent.ledger import Account
from dualstudent.targets import Findings, Pace, check_target
from dualstudent.targets.check import decimals
from onnx_fixture import build

SPEC = ds.Spec((1, 8, 8), 10)
Answer = Callable[[np.ndarray], np.ndarray]


def checked(answer: Answer, spec: ds.Spec = SPEC, **more: Any) -> Findings:
    return check_target(ds.CallableTarget(answer, spec, **more), Account("audit"))


def softmax(x: np.ndarray, classes: int = 10) -> np.ndarray:
    weights = np.random.default_rng(3).normal(size=(x[0].size, classes)) / 3
    values = np.exp(x.reshape(len(x), -1) @ weights)
    answer: np.ndarray = values / values.sum(1, keepdims=True)
    return answer


class TestSuspicions:
    def test_nothing_to_say_of_a_plain_classifier(self) -> None:
        assert checked(softmax).warnings == []

    def test_labels_only(self) -> None:
        [said] = checked(lambda x: softmax(x).argmax(1), output="labels").warnings
        assert "labels only" in said
        assert "--labels hard" in said

    def test_the_same_image_answered_differently(self) -> None:
        dice = np.random.default_rng(0)

        def noisy(x: np.ndarray) -> np.ndarray:
            values = softmax(x) + dice.uniform(0, 0.01, (len(x), 10))
            answer: np.ndarray = values / values.sum(1, keepdims=True)
            return answer

        [said] = checked(noisy).warnings
        assert "randomised defence" in said

    def test_one_answer_to_everything(self) -> None:
        [said] = checked(lambda x: np.tile(softmax(np.ones((1, 1, 8, 8))), (len(x), 1))).warnings
        assert "7 different images got one and the same answer" in said
        assert "--bounds" in said

    def test_ones_and_zeros(self) -> None:
        [said] = checked(lambda x: np.eye(10)[softmax(x).argmax(1)]).warnings
        assert "every probability is 0 or 1" in said

    @pytest.mark.parametrize("places", [3, 4, 5])
    def test_rounded(self, places: int) -> None:
        def rounded(x: np.ndarray) -> np.ndarray:
            values = softmax(x).round(places)
            values[np.arange(len(x)), values.argmax(1)] += (1 - values.sum(1)).round(places)
            return values

        [said] = checked(rounded).warnings
        assert f"rounded to {places} decimals" in said

    def test_probabilities_read_as_logits(self) -> None:
        [said] = checked(softmax, output="logits").warnings
        assert "leave --output logits out" in said
        assert checked(lambda x: 9 * softmax(x), output="logits").warnings == []

    def test_logits_read_as_probabilities_end_it(self) -> None:
        with pytest.raises(ds.TargetError, match="say so with --output logits"):
            checked(lambda x: np.log(softmax(x)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_decimals_are_those_of_the_rounding(seed: int, places: int) -> None:
    rows = torch.rand(8, 10, generator=torch.Generator().manual_seed(seed)).double()
    assert decimals(rows.float()) is None
    rounded = (rows * 10**places).round() / 10**places
    found = decimals(rounded.float())
    if places == 1:  # values of 0 and 1 tell nothing
        assert found in (1, None)
    else:
        assert found == places


class TestPace:
    def test_is_that_of_the_target(self) -> None:
        def slow(x: np.ndarray) -> np.ndarray:
            time.sleep(0.02 + 0.01 * len(x))
            return softmax(x)

        pace = checked(slow).pace
        assert pace.batch == 4
        assert 0.03 <= pace.single < 0.05
        assert 40 < pace.images_per_second <= 4 / 0.06
        assert pace.seconds(100) == pytest.approx(0.02 + 1.0, rel=0.3)

    @pytest.mark.parametrize(
        ("pace", "images", "seconds"),
        [
            (Pace(0.3, 5, 0.7), 1, 0.3),
            (Pace(0.3, 5, 0.7), 5, 0.7),
            (Pace(0.3, 5, 0.7), 256, 0.2 + 25.6),
            (Pace(0.3, 5, 0.7), 257, 0.4 + 25.7),
            (Pace(0.3, 5, 0.7, request=10), 40, 4 * 0.2 + 4.0),
            (Pace(0.3, 5, 0.7, request=10, lanes=4), 40, 0.2 + 1.0),
            (Pace(0.3, 5, 0.7, request=10, lanes=4), 10, 0.2 + 1.0),
            (Pace(0.3, 5, 0.7, rate=0.5), 5, 10.0),
            (Pace(0.3, 5, 0.2), 500, 0.6),  # no slower for more: within what can be told
        ],
    )
    def test_a_fixed_time_a_request_and_one_an_image(self, pace: Pace, images: int, seconds: float) -> None:
        assert pace.seconds(images) == pytest.approx(seconds)

    def test_only_eight_images_and_all_of_them_charged(self, linear: Callable[..., Linear]) -> None:
        target, account = linear((1, 8, 8), 10), Account("audit")
        found = check_target(target, account)
        assert target.seen == account.asked == found.images == 8
        assert target.calls == [1, 1, 1, 1, 4]
        more = check_target(target, account, images=100)
        assert more.pace.batch == 96
        assert account.asked == 108
        with pytest.raises(ds.UserError, match="--images 5: at least 6"):
            check_target(target, account, images=5)

    def test_classes_that_are_not_known(self) -> None:
        spec = ds.Spec((1, 8, 8), None)
        found = checked(lambda x: (x.mean((1, 2, 3)) * 7).astype(int), spec, output="labels")
        assert len(found.answers) == 8


@pytest.fixture
def model(tmp_path: Path) -> str:
    return f"onnx:{build(tmp_path / 'm.onnx', shape=(1, 8, 8), dims=('n', 1, 8, 8))}"


class TestCommand:
    def test_says_all_it_found(self, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["target", "check", model, "--queries", "200k", "--price", "1.5"]) == 0
        said = capsys.readouterr().out
        for word in ("1 8 8", "0 1", "latency", "images shown (audit)", "300.00", "m.onnx", "8"):
            assert word in said

    def test_json_is_all_that_is_printed(self, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["target", "check", model, "--json", "--price", "2"]) == 0
        values = json.loads(capsys.readouterr().out)
        assert values["spec"]["shape"] == [1, 8, 8]
        assert (values["images"], values["price"]) == (8, 2.0)
        assert values["latency_ms"] > 0 < values["images_per_s"]
        assert values["warnings"] == []

    def test_a_plan_counts_time_and_money_in(
        self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "check.json"
        assert main(["target", "check", model, "--price", "1.5", "--out", str(out)]) == 0
        values = json.loads(out.read_text())
        values["pace"] |= {"single": 0.5, "together": 2.0}
        out.write_text(json.dumps(values))
        plan = ["plan", "noise", "--target", model, "--queries", "640", "--threads", "1"]
        capsys.readouterr()
        assert main(plan) == 0
        assert "comes on top" in capsys.readouterr().out
        assert main([*plan, "--check", str(out)]) == 0
        said = capsys.readouterr().out
        assert "target's own 5 min" in said  # 640 half seconds
        assert "estimated price 0.96 for 640 queries at 1.5 for 1,000" in said
        assert main([*plan, "--check", str(out), "--price", "100"]) == 0
        assert "estimated price 64.00" in capsys.readouterr().out

    def test_another_targets_check_is_refused(
        self, model: str, digits_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "check.json"
        assert main(["target", "check", str(digits_target), "--out", str(out)]) == 0
        plan = ["plan", "noise", "--queries", "640", "--threads", "1", "--check", str(out), "--target"]
        assert main([*plan, str(digits_target)]) == 0
        assert main([*plan, model]) == 2
        assert "is of another target" in capsys.readouterr().err
        assert main([*plan, str(digits_target), "--levels", "256"]) == 2
        assert "spec differs" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "content",
        [
            None,
            "",
            "[]",
            "{}",
            '{"kind": "dualstudent check", "schema_version": 2}',
            "pace",
            "price",
            "times",
        ],
    )
    def test_a_file_that_is_no_check(
        self, content: str | None, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "check.json"
        broken = {"pace": {"pace": 3}, "price": {"price": -1.0}, "times": {"pace": {"single": 0}}}
        if content in broken:
            assert main(["target", "check", model, "--out", str(out)]) == 0
            content = json.dumps(json.loads(out.read_text()) | broken[content])
        if content is not None:
            out.write_text(content)
        capsys.readouterr()
        plan = ["plan", "noise", "--target", model, "--queries", "64", "--check", str(out)]
        assert main(plan) == 2
        said = capsys.readouterr().err
        assert str(out) in said
        assert said.count("\n") == 1

    @pytest.mark.parametrize("price", ["-1", "nan", "inf"])
    def test_a_price_that_is_none(self, price: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["target", "check", model, f"--price={price}"]) == 2
        assert "0 or more" in capsys.readouterr().err


def test_probes_stay_inside_normalised_bounds(digits_target: Path) -> None:
    options = ["--space", "normalised"]
    assert main(["target", "check", str(digits_target), *options]) == 0
