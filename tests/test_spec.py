"""What is known before the first query, names that do not exist, JSON files, and named objects."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dualstudent as ds
from dualstudent.errors import unknown
from dualstudent.files import read_json, write_json
from dualstudent.plugins import load_object

quick = settings(max_examples=60, deadline=None)
BOUNDS = [(0.0, 1.0), (-1.0, 1.0), (-2.5, 3.0), (0.0, 255.0)]
every_bounds = pytest.mark.parametrize("bounds", BOUNDS)
sides = st.integers(1, 64)


def unchecked() -> Any:
    """Spec as users have it: the types that conftest checks would hide what it checks by itself."""
    found = importlib.util.spec_from_file_location(
        "unchecked_spec", str(sys.modules[ds.Spec.__module__].__file__)
    )
    assert found is not None
    assert found.loader is not None
    sys.modules[found.name] = module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.Spec


Spec = unchecked()


@st.composite
def facts(draw: st.DrawFn) -> tuple[Any, ...]:
    shape = (draw(st.integers(1, 4)), draw(sides), draw(sides))
    low = draw(st.floats(-1e6, 1e6))
    normal = draw(st.booleans())
    values = st.floats(0.01, 10, allow_nan=False)
    channels = st.tuples(*[values] * shape[0])
    return (
        shape,
        draw(st.none() | st.integers(2, 1000)),
        (low, low + draw(st.floats(0.5, 1e6))),
        draw(st.sampled_from(ds.Access)),
        draw(st.none() | st.integers(2, 65536)),
        draw(channels) if normal else None,
        draw(channels) if normal else None,
    )


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class TestSpec:
    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"shape": (1, 8)}, "shape"),
            ({"shape": (1, 8, 8, 8)}, "shape"),
            ({"shape": (0, 8, 8)}, "shape"),
            ({"shape": (1, 8, -1)}, "shape"),
            ({"classes": 1}, "classes"),
            ({"classes": 0}, "classes"),
            ({"bounds": (1.0, 0.0)}, "bounds"),
            ({"bounds": (1.0, 1.0)}, "bounds"),
            ({"bounds": (0.0, float("inf"))}, "bounds"),
            ({"bounds": (float("nan"), 1.0)}, "bounds"),
            ({"levels": 1}, "levels"),
            ({"shape": (3, 30_000, 30_000)}, "2,700,000,000 values"),
            ({"mean": (0.5,)}, "together"),
            ({"std": (0.5,)}, "together"),
            ({"mean": (0.5, 0.5), "std": (0.5,)}, "mean has 2"),
            ({"mean": (0.5,), "std": (0.5, 0.5)}, "std has 2"),
        ],
    )
    def test_nonsense_is_refused_in_one_line(self, changes: dict[str, Any], word: str) -> None:
        with pytest.raises(ds.UserError, match=word) as caught:
            Spec(**({"shape": (1, 8, 8), "classes": 4} | changes))
        assert "\n" not in str(caught.value)

    def test_a_typo_is_an_error_and_nothing_changes_later(self) -> None:
        with pytest.raises(TypeError):
            ds.Spec((1, 8, 8), 4, clases=3)  # type: ignore[call-arg]
        with pytest.raises(FrozenInstanceError):
            ds.Spec((1, 8, 8), 4).classes = 5  # type: ignore[misc]

    def test_access_is_ordered_from_least_to_most(self) -> None:
        assert ds.Access.LABEL < ds.Access.TOPK < ds.Access.PROBS

    @every_bounds
    def test_black_and_white_are_the_ends_of_the_bounds(self, bounds: tuple[float, float]) -> None:
        spec = ds.Spec((1, 1, 2), 4, bounds)
        assert spec.encode(torch.tensor([[[[0.0, 1.0]]]])).flatten().tolist() == list(bounds)

    @every_bounds
    def test_decode_undoes_encode(self, bounds: tuple[float, float]) -> None:
        spec, x = ds.Spec((3, 4, 5), 4, bounds), pixels(2, 3, 4, 5)
        assert torch.allclose(spec.decode(spec.encode(x)), x, atol=1e-6)

    def test_decode_gives_pixels_whatever_comes(self) -> None:
        shown = ds.Spec((1, 1, 3), 4, (-1.0, 1.0)).decode(torch.tensor([[[[-9.0, 0.0, 9.0]]]]))
        assert shown.flatten().tolist() == [0.0, 0.5, 1.0]

    def test_mean_and_deviation_are_of_each_channel(self) -> None:
        spec = ds.Spec((2, 1, 1), 4, (-1.0, 1.0), mean=(0.5, 0.0), std=(0.25, 2.0))
        encoded = spec.encode(torch.tensor([[[[1.0]], [[1.0]]], [[[0.0]], [[0.5]]]]))
        assert encoded.flatten().tolist() == [2.0, 0.5, -2.0, 0.25]

    @quick
    @given(
        st.sampled_from(BOUNDS),
        st.sampled_from([2, 3, 10, 16, 255, 256]),
        st.integers(0, 2**32),
        st.floats(0, 1),
    )
    def test_quantise_gives_the_nearest_level_and_keeps_levels(
        self, bounds: tuple[float, float], levels: int, seed: int, one: float
    ) -> None:
        spec = ds.Spec((1, 4, 8), 4, bounds, levels=levels)
        x = spec.encode(pixels(2, 1, 4, 8, seed=seed))
        x[0, 0, 0, 0] = bounds[0] + one * (bounds[1] - bounds[0])
        rounded = spec.quantise(x)
        assert torch.equal(spec.quantise(rounded), rounded)
        grid = (rounded.double() - bounds[0]) / (bounds[1] - bounds[0]) * (levels - 1)
        assert (grid - grid.round()).abs().max() < 1e-3
        assert grid.min() > -0.5
        assert grid.max() < levels - 0.5
        assert ((rounded - x).abs().max() / (bounds[1] - bounds[0])).item() <= 0.5001 / (levels - 1)

    @every_bounds
    def test_bytes_are_levels(self, bounds: tuple[float, float]) -> None:
        """All 256 values of a byte survive, and are told apart, where a service takes 8-bit images."""
        spec = ds.Spec((1, 16, 16), 4, bounds, levels=256)
        x = spec.encode(torch.arange(256.0).view(1, 1, 16, 16) / 255)
        rounded = spec.quantise(x)
        assert torch.allclose(rounded, x, atol=1e-5 * (bounds[1] - bounds[0]))
        assert len(set(rounded.flatten().tolist())) == 256

    @quick
    @given(
        st.sampled_from([*BOUNDS, (0.1, 0.3), (0.0, 255 / 256 + 1e-4)]),
        st.sampled_from([None, 16, 256]),
        st.integers(0, 2**32),
    )
    def test_half_precision_is_that_of_what_is_sent(
        self, bounds: tuple[float, float], levels: int | None, seed: int
    ) -> None:
        spec = ds.Spec((1, 4, 8), 4, bounds, levels=levels, half=True)
        x = spec.encode(pixels(2, 1, 4, 8, seed=seed))
        x[0, 0, 0, :2] = torch.tensor(bounds)
        rounded = spec.quantise(x)
        assert rounded.dtype == torch.float32
        assert torch.equal(rounded, rounded.half().float())
        assert torch.equal(spec.quantise(rounded), rounded)
        assert bounds[0] <= rounded.double().min()
        assert rounded.double().max() <= bounds[1], "rounding leads out of no bounds"
        coarse = replace(spec, half=False).quantise(x)
        assert (rounded - coarse).abs().max() <= 2**-10 * max(map(abs, bounds))
        strange = torch.tensor([[[[float("nan"), float("inf"), 2 * bounds[1], -1e4]]]])
        assert torch.isnan(spec.quantise(strange)[0, 0, 0, 0])
        assert (replace(spec, levels=None).quantise(strange)[0, 0, 0, 1:3] > bounds[1]).all(), "not hidden"

    def test_a_manifest_without_half_is_read_as_before(self) -> None:
        values = ds.Spec((1, 8, 8), 4).to_json()
        assert "half" not in values
        assert ds.Spec.from_json(values | {"half": True}) == ds.Spec((1, 8, 8), 4, half=True)
        with pytest.raises(ds.UserError, match="half"):
            ds.Spec.from_json(values | {"half": "yes"})

    def test_without_levels_any_value_passes(self) -> None:
        x = pixels(2, 1, 8, 8)
        assert torch.equal(ds.Spec((1, 8, 8), 4).quantise(x), x)
        assert not torch.equal(ds.Spec((1, 8, 8), 4, levels=256).quantise(x), x)

    @quick
    @given(facts())
    def test_json_round_trip(self, known: tuple[Any, ...]) -> None:
        spec = ds.Spec(*known)
        again = ds.Spec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec
        assert hash(again) == hash(spec)

    @pytest.mark.parametrize(
        "changes",
        [
            {"access": "ALL"},
            {"access": 2},
            {"shape": [1, 8]},
            {"shape": 8},
            {"shape": "1x8"},
            {"bounds": [1, 0]},
            {"more": 1},
        ],
    )
    def test_what_is_no_spec_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ds.UserError):
            Spec.from_json(ds.Spec((1, 8, 8), 4).to_json() | changes)

    @pytest.mark.parametrize("missing", ["access", "shape", "classes"])
    def test_a_spec_with_less_is_refused(self, missing: str) -> None:
        values = ds.Spec((1, 8, 8), 4).to_json()
        del values[missing]
        with pytest.raises(ds.UserError, match=missing):
            Spec.from_json(values)


class TestUnknown:
    def test_names_the_nearest(self) -> None:
        error = unknown("architecture", "lenet", ["resnet18", "lenet5", "digits-cnn"])
        assert str(error) == "unknown architecture 'lenet': did you mean 'lenet5'?"
        assert isinstance(error, ds.UserError)

    def test_lists_all_where_none_is_near(self) -> None:
        assert str(unknown("split", "xyz", ["train", "test"])) == "unknown split 'xyz': known: test, train"
        assert str(unknown("split", "xyz", [])).endswith("known: none")

    def test_what_a_user_can_mend_is_told_from_a_stop(self) -> None:
        assert issubclass(ds.TargetError, ds.UserError)
        assert issubclass(ds.Overdraft, ds.UserError)
        assert not issubclass(ds.Stopped, ds.UserError)


class TestLoadObject:
    @pytest.fixture(autouse=True)
    def _own_path(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.chdir(tmp_path)

    def test_from_an_installed_module(self) -> None:
        assert load_object("os.path:basename")("a/b") == "b"

    def test_from_the_working_directory(self, tmp_path: Path) -> None:
        (tmp_path / "my_spec_factory.py").write_text("def make():\n    return 41 + 1\n")
        assert load_object("my_spec_factory:make")() == 42

    @pytest.mark.parametrize("reference", ["os", "os:", ":path", "", ":"])
    def test_half_a_reference(self, reference: str) -> None:
        with pytest.raises(ds.UserError, match=r"package\.module:factory"):
            load_object(reference)

    def test_no_such_module(self, tmp_path: Path) -> None:
        with pytest.raises(ds.UserError, match="cannot import 'no_such_module_here'") as caught:
            load_object("no_such_module_here:make")
        assert str(tmp_path) in str(caught.value)

    def test_no_such_name(self) -> None:
        with pytest.raises(ds.UserError, match=r"module 'os\.path' has no 'no_such_name'"):
            load_object("os.path:no_such_name")

    def test_a_module_that_misses_another_says_which(self, tmp_path: Path) -> None:
        (tmp_path / "my_spec_needy.py").write_text("import no_such_dependency\n")
        with pytest.raises(ds.UserError, match="no_such_dependency"):
            load_object("my_spec_needy:make")


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        values = {"a": [1, 2.5, None, True], "ü": {"é": "…"}}
        write_json(tmp_path / "x.json", values)
        assert read_json(tmp_path / "x.json") == values
        assert [file.name for file in tmp_path.iterdir()] == ["x.json"]

    def test_what_cannot_be_written_leaves_the_old_file(self, tmp_path: Path) -> None:
        write_json(tmp_path / "x.json", {"a": 1})
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "x.json", {"a": float("nan")})
        assert read_json(tmp_path / "x.json") == {"a": 1}

    def test_no_folder_to_write_to(self, tmp_path: Path) -> None:
        with pytest.raises(ds.UserError, match="cannot write"):
            write_json(tmp_path / "none" / "x.json", {})

    @pytest.mark.parametrize(
        ("content", "word"),
        [
            (None, "missing"),
            (b"{", "JSON"),
            (b"", "JSON"),
            (b"\xff\xfe\x00", "JSON"),
            (b"[1]", "no JSON object"),
        ],
    )
    def test_what_cannot_be_read(self, content: bytes | None, word: str, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ds.UserError, match=word) as caught:
            read_json(tmp_path / "x.json")
        assert str(tmp_path / "x.json") in str(caught.value)

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ds.UserError):
            read_json(tmp_path)


class TestService:
    def test_a_target_whose_answers_come_a_request_at_a_time_is_one(self) -> None:
        class Slow:
            spec = ds.Spec((1, 2, 2), 3)

            def __init__(self) -> None:
                self.traffic = ds.Traffic()

            def requests(self, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
                for rows in reversed(torch.split(torch.arange(len(x)), 2)):
                    self.traffic.requests += 1
                    yield rows, torch.eye(3)[rows % 3]

            def __call__(self, x: torch.Tensor) -> torch.Tensor:
                answers = torch.zeros(len(x), 3)
                for rows, found in self.requests(x):
                    answers[rows] = found
                return answers

        service, other = Slow(), Slow()
        assert isinstance(service, ds.Service)
        assert isinstance(service, ds.Target)
        assert service(torch.zeros(5, 1, 2, 2)).argmax(1).tolist() == [0, 1, 2, 0, 1]
        assert service.traffic.requests == 3
        service.traffic.statuses["200"] = 3
        assert other.traffic == ds.Traffic()

    def test_a_module_in_this_process_is_none(self) -> None:
        target = ds.CallableTarget(lambda x: x, ds.Spec((1, 2, 2), 3))
        assert isinstance(target, ds.Target)
        assert not isinstance(target, ds.Service)


class TestPackage:
    def test_every_public_name_is_there(self) -> None:
        assert all(getattr(ds, name) is not None for name in ds.__all__)
        assert set(dir(ds)) == set(ds.__all__)
        with pytest.raises(AttributeError, match="no_such_name"):
            ds.no_such_name  # noqa: B018

    def test_torch_waits_for_its_first_use(self) -> None:
        code = "import sys, dualstudent, dualstudent.cli; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
