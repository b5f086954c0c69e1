"""Data sets by name and by folder: what load_data finds, how Images behave, what bad input says."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dualstudent.data import DATA_SETS, Images, load_data
from dualstudent.errors import UserError

data = pytest.mark.data
needs_data = pytest.mark.skipif(
    "DUALSTUDENT_DATA" not in os.environ, reason="DUALSTUDENT_DATA names no folder of image benchmarks"
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_npz(path: Path, **arrays: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})  # type: ignore[arg-type]
    return path


def mnist_npz(folder: Path, **changes: object) -> Path:
    content: dict[str, object] = {
        "images": noise(5, 28, 28),
        "labels": np.arange(5),
        "classes": np.array(list("0123456789")),
    }
    return write_npz(folder / "mnist" / "test.npz", **{**content, **changes})


def small() -> Images:
    images = torch.from_numpy(noise(6, 3, 4, 5))
    return Images("own", "test", images, torch.tensor([0, 1, 2, 0, 1, 2]), ("a", "b", "c"))


class TestImages:
    def test_length_and_shape(self) -> None:
        assert len(small()) == 6
        assert small().shape == (3, 4, 5)

    def test_pixels_are_in_the_unit_interval_and_keep_all_levels(self) -> None:
        levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
        pixels = Images("own", "test", levels, torch.tensor([0]), ("a",)).pixels()
        assert pixels.dtype == torch.float32
        assert (pixels.min().item(), pixels.max().item()) == (0, 1)
        assert torch.equal((pixels * 255).round().to(torch.uint8), levels)

    def test_pixels_of_a_range(self) -> None:
        assert torch.equal(small().pixels(2, 4), small().pixels()[2:4])
        assert len(small().pixels(4, 99)) == 2

    @pytest.mark.parametrize(
        "index", [slice(1, 6, 2), torch.tensor([5, 0, 0]), torch.tensor([True, False] * 3)]
    )
    def test_subsets_keep_images_and_labels_together(self, index: slice | torch.Tensor) -> None:
        part = small()[index]
        assert torch.equal(part.images, small().images[index])
        assert torch.equal(part.labels, small().labels[index])
        assert (part.name, part.split, part.classes) == ("own", "test", ("a", "b", "c"))

    def test_digest_depends_on_images_labels_and_order_alone(self) -> None:
        first = small()
        assert first.digest() == small().digest() == first.digest()
        assert len(first.digest()) == 64
        assert first[torch.tensor([1, 0, 2, 3, 4, 5])].digest() != first.digest()
        other = Images("own", "test", first.images, (first.labels + 1) % 3, first.classes)
        assert other.digest() != first.digest()
        strided = Images("else", "train", first.images[::2], first.labels[::2], ())
        assert strided.digest() == first[torch.tensor([0, 2, 4])].digest()

    def test_moves_to_a_device_and_stays_printable(self) -> None:
        assert small().to("cpu").digest() == small().digest()
        assert small().to(torch.device("meta")).images.device.type == "meta"
        assert len(repr(small())) < 100


class TestDigits:
    def test_split_is_stratified_and_the_same_each_time(self) -> None:
        train, test = load_data("digits", "train"), load_data("digits", "test")
        assert (len(train), len(test)) == (897, 900)
        assert train.shape == test.shape == (1, 8, 8)
        assert train.classes == tuple("0123456789")
        in_train, in_test = (torch.bincount(part.labels) / len(part) for part in (train, test))
        assert torch.allclose(in_train, in_test, atol=0.002)
        assert load_data("digits").digest() == test.digest()

    def test_every_digit_is_in_one_of_the_two(self) -> None:
        from sklearn.datasets import load_digits

        found = [
            row.tobytes() for part in ("train", "test") for row in load_data("digits", part).images.numpy()
        ]
        originals = np.round(load_digits().images * 255 / 16).astype(np.uint8)
        assert sorted(found) == sorted(row.tobytes() for row in originals)

    def test_a_known_name_wins_over_a_directory_unless_it_is_a_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_npz(tmp_path / "digits" / "test.npz", images=noise(3, 6, 7), labels=[0, 2, 1])
        assert len(load_data("digits")) == 900
        assert len(load_data("./digits")) == len(load_data(Path("digits"))) == 3

    def test_values_are_the_originals_stretched_to_bytes(self) -> None:
        values = set(load_data("digits").images.flatten().tolist())
        assert values == {round(v * 255 / 16) for v in range(17)}


class TestNames:
    def test_facts_are_complete(self) -> None:
        assert set(DATA_SETS) == {"digits", "mnist", "fashion-mnist", "svhn", "gtsrb", "cifar10", "cifar100"}
        counts = {name: len(facts.classes) for name, facts in DATA_SETS.items()}
        assert counts == dict.fromkeys(DATA_SETS, 10) | {"gtsrb": 43, "cifar100": 100}
        for facts in DATA_SETS.values():
            assert len(facts.mean) == len(facts.std) == facts.shape[0]
            assert len(set(facts.classes)) == len(facts.classes)

    @pytest.mark.parametrize("name", ["fashion_mnist", "fashion-mnist", "FashionMNIST"])
    @pytest.mark.parametrize("folder", ["fashion_mnist", "fashion-mnist"])
    def test_aliases(self, tmp_path: Path, name: str, folder: str) -> None:
        mnist_npz(tmp_path).parent.rename(tmp_path / folder)
        assert load_data(name, folder=tmp_path).name == "fashion-mnist"

    @pytest.mark.parametrize(
        ("name", "split", "message"),
        [
            ("minst", "test", "unknown data set 'minst': did you mean 'mnist'?"),
            ("zzz", "test", "unknown data set 'zzz': known: cifar10, "),
            ("digits", "tset", "unknown split 'tset': did you mean 'test'?"),
            ("digits", "test_lossless", "digits has no split 'test_lossless', only cifar10 has: use 'test'"),
            (
                "./nowhere",
                "test",
                "no folder nowhere: give a folder of class folders or one of digits, mnist",
            ),
            (Path("nowhere"), "test", "no folder nowhere: "),
            ("", "test", "unknown data set '': known: "),
            ("x" * 300, "test", f"{'x' * 300}: cannot be read (File name too long)"),
        ],
    )
    def test_unknown_ones(self, name: str | Path, split: str, message: str) -> None:
        with pytest.raises(UserError) as caught:
            load_data(name, split)
        assert str(caught.value).startswith(message)


class TestFolders:
    @pytest.fixture(autouse=True)
    def _no_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DUALSTUDENT_DATA", raising=False)

    def test_argument_wins_over_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mnist_npz(tmp_path / "a", labels=[1] * 5)
        mnist_npz(tmp_path / "b", labels=[2] * 5)
        monkeypatch.setenv("DUALSTUDENT_DATA", str(tmp_path / "a"))
        assert load_data("mnist").labels.tolist() == [1] * 5
        assert load_data("mnist", folder=str(tmp_path / "b")).labels.tolist() == [2] * 5

    def test_own_folder_of_the_data_set(self, tmp_path: Path) -> None:
        own = mnist_npz(tmp_path).parent
        assert len(load_data("mnist", folder=own)) == 5
        own.rename(tmp_path / "stuff")
        assert len(load_data("mnist", folder=tmp_path / "stuff")) == 5

    def test_never_another_data_sets_own_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no test images of fashion-mnist"):
            load_data("fashion-mnist", folder=mnist_npz(tmp_path).parent)

    def test_no_folder(self, tmp_path: Path) -> None:
        advice = "no data folder: give --data-dir or set DUALSTUDENT_DATA; looked for "
        with pytest.raises(UserError, match=advice + "a folder with mnist/"):
            load_data("mnist")
        with pytest.raises(UserError, match=advice + ".*absent"):
            load_data("mnist", folder=tmp_path / "absent")

    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("mnist", "-images-idx3-ubyte[.gz]"),
            ("svhn", "_32x32.mat"),
            ("gtsrb", "GTSRB/Final_T"),
            ("cifar10", "cifar-10-binary.tar.gz"),
            ("cifar100", "cifar-100-binary.tar.gz"),
        ],
    )
    def test_missing_data_set_says_what_was_looked_for(
        self, tmp_path: Path, name: str, file: str, split: str
    ) -> None:
        with pytest.raises(UserError) as caught:
            load_data(name, split, folder=tmp_path)
        message = str(caught.value)
        assert message.startswith(f"no {split} images of {name}: looked in {tmp_path}")
        assert f"{split}.npz" in message
        assert file in message
        assert message.endswith(f"'dualstudent data get {name}' downloads the published files")
        assert "\n" not in message

    def test_lossless_split_needs_its_own_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"test_lossless\.npz; the published files are lossless"):
            load_data("cifar10", "test_lossless", folder=tmp_path)
        arrays = {"images": noise(4, 32, 32, 3), "labels": np.arange(4)}
        write_npz(tmp_path / "cifar10" / "test_lossless.npz", **arrays)
        found = load_data("cifar10", "test_lossless", folder=tmp_path)
        assert (found.split, found.classes[0]) == ("test_lossless", "airplane")
        assert np.array_equal(found.images.numpy(), arrays["images"].transpose(0, 3, 1, 2))


def test_start_up_imports_no_optional_library() -> None:
    import subprocess

    code = "import sys, dualstudent.data; print({'PIL', 'sklearn', 'scipy', 'pooch'} & set(sys.modules))"
    path = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert result.stdout == "set()\n", result.stderr


@data
@needs_data
class TestRealData:
    @pytest.mark.parametrize(
        ("name", "split", "count"),
        [
            ("mnist", "test", 10_000),
            ("mnist", "train", 60_000),
            ("fashion-mnist", "test", 10_000),
            ("gtsrb", "test", 12_630),
            ("cifar10", "test", 10_000),
            ("cifar10", "test_lossless", 10_000),
            ("cifar100", "test", 10_000),
        ],
    )
    def test_counts_shapes_labels_and_normalisation(self, name: str, split: str, count: int) -> None:
        facts, found = DATA_SETS[name], load_data(name, split)
        assert (len(found), found.shape, found.classes) == (count, facts.shape, facts.classes)
        assert set(found.labels.tolist()) == set(range(len(facts.classes)))
        pixels = found.pixels()
        assert (pixels.min().item(), pixels.max().item()) == (0, 1)
        assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(facts.mean), atol=0.005)
        assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(facts.std), atol=0.005)

    def test_lossless_cifar10_is_the_same_images_in_the_same_order(self) -> None:
        packed, lossless = load_data("cifar10"), load_data("cifar10", "test_lossless")
        assert torch.equal(packed.labels, lossless.labels)
        error = (packed.pixels() - lossless.pixels()).square().mean().sqrt() * 255
        assert 4 < error < 6  # 5.0 of 255 levels
