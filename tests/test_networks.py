"""Classifiers and generators for every shape that they take."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dualstudent as ds
from dualstudent.networks import ARCHITECTURES, Generator, classifier, smallest

Shape = tuple[int, int, int]
quick = settings(max_examples=30, deadline=None)
LEAST = {"digits-cnn": 4, "lenet5": 12, "lenet5-half": 12, "resnet8": 4, "resnet18": 4, "resnet34": 4}
SMALL = [(name, (c, side, side), k) for name, side in LEAST.items() for c, k in ((1, 2), (3, 43))]
ODD: list[tuple[str, Shape, int]] = [
    ("digits-cnn", (1, 8, 8), 10),
    ("digits-cnn", (2, 5, 11), 3),
    ("digits-cnn", (3, 32, 32), 10),
    ("lenet5", (1, 28, 28), 10),
    ("lenet5", (3, 13, 31), 2),
    ("lenet5-half", (1, 33, 12), 43),
    ("resnet8", (3, 7, 9), 43),
    ("resnet18", (1, 9, 5), 2),
]


def images(n: int, shape: Shape, seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class TestClassifiers:
    def test_all_are_covered_here(self) -> None:
        assert LEAST.keys() == ARCHITECTURES.keys()

    @pytest.mark.parametrize(("name", "shape", "classes"), SMALL + ODD)
    def test_logits_and_gradients(self, name: str, shape: Shape, classes: int) -> None:
        torch.manual_seed(0)
        network = classifier(name, shape, classes)
        logits = network(images(6, shape))
        assert logits.shape == (6, classes)
        assert torch.isfinite(logits).all()
        (logits * torch.randn_like(logits)).sum().backward()
        dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not dead
        assert not torch.equal(logits[0], logits[1])
        logits = network.eval()(images(1, shape))
        assert logits.shape == (1, classes)

    @pytest.mark.parametrize("half", [False, True])
    @pytest.mark.parametrize(("name", "shape", "classes"), SMALL + ODD)
    def test_the_same_with_and_without_gradients(
        self, name: str, shape: Shape, classes: int, half: bool
    ) -> None:
        """Whatever way is quicker without, but for rounding; a pixel that is no number tells no class."""
        torch.manual_seed(0)
        network, x = classifier(name, shape, classes).eval(), images(6, shape)
        for layout in (torch.contiguous_format, torch.channels_last):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                learnt = network(x.contiguous(memory_format=layout))
                with torch.no_grad():
                    asked = network(x.contiguous(memory_format=layout))
                    lost = network(x.index_fill(0, torch.tensor([2]), torch.nan))
            assert learnt.requires_grad
            torch.testing.assert_close(learnt.detach(), asked, rtol=1e-5, atol=1e-6)
            assert lost.isnan().any(1).tolist() == [i == 2 for i in range(6)]

    @pytest.mark.parametrize(("name", "side"), LEAST.items())
    def test_too_small_a_shape_is_refused(self, name: str, side: int) -> None:
        for shape in ((1, side - 1, side), (1, side, side - 1)):
            with pytest.raises(ds.UserError, match=f"at least {side}×{side}"):
                classifier(name, shape, 10)

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_no_bias_in_front_of_a_normalisation(self, name: str) -> None:
        with torch.device("meta"):
            modules = list(classifier(name, (3, 32, 32), 10).modules())
        convolutions = [m for m in modules if isinstance(m, nn.Conv2d)]
        normalised = any(isinstance(m, nn.BatchNorm2d) for m in modules)
        assert all((c.bias is None) == normalised for c in convolutions)
        assert convolutions

    def test_names_of_the_saved_format(self) -> None:
        def norm(name: str) -> list[str]:
            kept = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            return [f"{name}.{part}" for part in kept]

        def names(arch: str) -> list[str]:
            with torch.device("meta"):
                return list(classifier(arch, (1, 28, 28), 10).state_dict())

        plain = [
            f"{n}.{part}" for n in ("conv1", "conv2", "fc1", "fc2", "head") for part in ("weight", "bias")
        ]
        assert names("lenet5") == names("lenet5-half") == plain
        digits = [*(f"conv{i}.weight" for i in (1, 2, 3)), *norm("bn1"), *norm("bn2"), *norm("bn3")]
        assert sorted(names("digits-cnn")) == sorted([*digits, "head.weight", "head.bias"])
        for arch, depth, shortcuts in (
            ("resnet8", 3, [1, 2]),
            ("resnet18", 8, [2, 4, 6]),
            ("resnet34", 16, [3, 7, 13]),
        ):
            frozen = ["conv1.weight", *norm("bn1"), "head.weight", "head.bias"]
            for i in range(depth):
                parts = ["conv1.weight", *norm("bn1"), "conv2.weight", *norm("bn2")]
                parts += ["shortcut.0.weight", *norm("shortcut.1")] if i in shortcuts else []
                frozen += [f"blocks.{i}.{part}" for part in parts]
            assert sorted(names(arch)) == sorted(frozen)

    @pytest.mark.parametrize(
        ("shape", "name"),
        [((1, 8, 8), "digits-cnn"), ((1, 28, 28), "lenet5-half"), ((3, 64, 64), "digits-cnn")],
    )
    def test_smallest_has_the_fewest_weights(self, shape: Shape, name: str) -> None:
        assert smallest(shape) == name
        torch.manual_seed(0)
        chosen = classifier("auto", shape, 5)
        torch.manual_seed(0)
        assert same(chosen, classifier(name, shape, 5))

    @quick
    @given(st.tuples(st.integers(1, 4), st.integers(4, 70), st.integers(4, 70)))
    def test_there_is_one_for_every_shape(self, shape: Shape) -> None:
        assert classifier("auto", shape, 5)(torch.zeros(2, *shape)).shape == (2, 5)

    def test_what_none_takes(self) -> None:
        with pytest.raises(ds.UserError, match="3×9"):
            smallest((1, 3, 9))

    def test_unknown(self) -> None:
        with pytest.raises(ds.UserError, match="did you mean 'resnet18'"):
            classifier("resnet-18", (3, 32, 32), 10)

    def test_one_of_ones_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_nets.py").write_text(
            "from torch import nn\n"
            "def flat(shape, classes):\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
            "def text(shape, classes):\n"
            "    return 'a network'\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        assert classifier("torch:my_nets:flat", (2, 3, 5), 7)(torch.rand(4, 2, 3, 5)).shape == (4, 7)
        with pytest.raises(ds.UserError, match="made a str"):
            classifier("torch:my_nets:text", (2, 3, 5), 7)


class TestGenerator:
    @quick
    @given(
        st.integers(1, 4),
        st.integers(8, 64),
        st.integers(8, 64),
        st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-2.5, 3.0)]),
        st.booleans(),
    )
    def test_any_size_inside_the_bounds(
        self, channels: int, height: int, width: int, bounds: tuple[float, float], learn: bool
    ) -> None:
        torch.manual_seed(0)
        made = Generator(3, (channels, height, width), bounds, width=2, learn_range=learn)(
            10 * torch.randn(4, 3)
        )
        assert made.shape == (4, channels, height, width)
        slack = 1e-6 * (bounds[1] - bounds[0])
        assert made.min() >= bounds[0] - slack
        assert made.max() <= bounds[1] + slack
        assert (made.max() - made.min()).item() > 0.5 * (bounds[1] - bounds[0])

    @pytest.mark.parametrize("side", [8, 9, 11, 28, 32, 63, 64])
    def test_every_pixel_kept_is_normalised(self, side: int) -> None:
        """What is cut off has no part in the last normalisation, so tanh gets mean 0, deviation 1."""
        torch.manual_seed(0)
        raw = Generator(8, (3, side, side + 1 if side < 64 else 61), (0.0, 1.0), width=4).preactivation(
            torch.randn(16, 8)
        )
        assert raw.mean((0, 2, 3)).abs().max() < 1e-4
        assert (raw.std((0, 2, 3)) - 1).abs().max() < 0.01

    @pytest.mark.parametrize("size", [(7, 8), (8, 7), (65, 64), (64, 65), (1, 1)])
    def test_other_sizes_are_refused(self, size: tuple[int, int]) -> None:
        with pytest.raises(ds.UserError, match=f"not {size[0]}×{size[1]}"):
            Generator(3, (1, *size), (0.0, 1.0))

    def test_its_range_is_learnt_on_request(self) -> None:
        fixed, learnt = (
            dict(Generator(3, (2, 8, 8), (0.0, 1.0), learn_range=on).named_parameters())
            for on in (False, True)
        )
        assert {name: p.shape for name, p in learnt.items() if name not in fixed} == {
            "bn3.weight": (2,),
            "bn3.bias": (2,),
        }

    def test_every_weight_learns_and_the_noise_matters(self) -> None:
        torch.manual_seed(0)
        generator = Generator(5, (2, 9, 8), (-1.0, 1.0), width=4, learn_range=True)
        made = generator(torch.randn(6, 5))
        (made * torch.randn_like(made)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.parameters())
        assert not torch.allclose(made[0], made[1])

    def test_its_convolutions_have_no_bias(self) -> None:
        names = dict(Generator(3, (1, 8, 8), (0.0, 1.0)).named_parameters())
        assert not [name for name in names if name.startswith("conv") and name.endswith("bias")]
