"""The packed layout, one .npz a split: images or JPEG streams, and what is wrong with broken ones."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualstudent.data import load_data
from dualstudent.errors import UserError
from test_data import mnist_npz, noise, write_npz


def jpegs(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    streams = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
        streams.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, streams)])
    return np.frombuffer(b"".join(streams), np.uint8), offsets


class TestPacked:
    def test_pixels_and_class_names(self, tmp_path: Path) -> None:
        mnist_npz(tmp_path, classes=[f"digit {i}" for i in range(10)])
        found = load_data("mnist", folder=tmp_path)
        assert np.array_equal(found.images.numpy(), noise(5, 1, 28, 28))
        assert (found.labels.tolist(), found.labels.dtype) == ([0, 1, 2, 3, 4], torch.int64)
        assert found.classes[9] == "digit 9"

    def test_jpeg_streams(self, tmp_path: Path) -> None:
        flat = np.full((3, 32, 32, 3), 100, np.uint8)
        flat[1:, :, :, 0] = 250
        jpeg, offsets = jpegs(flat)
        write_npz(tmp_path / "cifar10" / "test.npz", jpeg=jpeg, offsets=offsets, labels=[0, 9, 3])
        found = load_data("cifar10", folder=tmp_path)
        assert np.abs(found.images.numpy().astype(int) - flat.transpose(0, 3, 1, 2)).max() <= 3

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": [0, 1, 2, 3, 10]}, "labels 0 to 10 for 10 classes"),
            ({"labels": [0, 1, 2, 3, -1]}, "labels -1 to 3 for 10 classes"),
            ({"labels": [0, 1]}, "5 images but 2 labels"),
            ({"labels": [0.5] * 5}, "no list of integers"),
            ({"labels": [[1]] * 5}, "no list of integers"),
            ({"images": noise(0, 28, 28), "labels": np.arange(0)}, "holds no images"),
            ({"images": noise(5, 28)}, "images of type uint8 and shape"),
            ({"images": noise(5, 28, 28, 4)}, "images of type uint8 and shape"),
            ({"images": noise(5, 28, 28) / 255}, "images of type float64"),
            ({"images": noise(5, 8, 8)}, "is it another data set?"),
            ({"classes": ["a", "b", "c", "d", "e"]}, "5 classes .* is it another data set?"),
            ({"images": np.array([None] * 5)}, "Object arrays cannot be loaded"),
        ],
    )
    def test_wrong_arrays(self, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        path = mnist_npz(tmp_path, **changes)
        with pytest.raises(UserError, match=f"^{path}.*{message}"):
            load_data("mnist", folder=tmp_path)

    @pytest.mark.parametrize(
        ("jpeg", "offsets", "message"),
        [
            (noise(100), [0, 50, 100], "UnidentifiedImageError|SyntaxError|OSError"),
            (noise(100), [0, 50, 101], "'offsets' do not cut"),
            (noise(100), [0, 50, 40], "'offsets' do not cut"),
            (noise(100), [-1, 50, 90], "'offsets' do not cut"),
            (noise(100), [], "'offsets' do not cut"),
            (noise(100), [0], "holds no images"),
            (noise(10, 10), [0, 5], "'offsets' do not cut"),
        ],
    )
    def test_wrong_streams(self, tmp_path: Path, jpeg: object, offsets: object, message: str) -> None:
        offsets = np.array(offsets, np.int64)
        write_npz(tmp_path / "cifar10" / "test.npz", jpeg=jpeg, offsets=offsets, labels=[0, 1])
        with pytest.raises(UserError, match=message):
            load_data("cifar10", folder=tmp_path)

    def test_truncated_jpeg_is_named(self, tmp_path: Path) -> None:
        jpeg, offsets = jpegs(noise(2, 32, 32, 3))
        offsets[2] -= 300
        write_npz(tmp_path / "cifar10" / "test.npz", jpeg=jpeg, offsets=offsets, labels=[0, 1])
        with pytest.raises(UserError, match=r"^image 1 of .*test\.npz: OSError: .*truncated"):
            load_data("cifar10", folder=tmp_path)

    def test_missing_key_and_other_files(self, tmp_path: Path) -> None:
        path = write_npz(tmp_path / "mnist" / "test.npz", images=noise(2, 28, 28))
        with pytest.raises(UserError, match="no 'labels'"):
            load_data("mnist", folder=tmp_path)
        for content in (b"", b"no archive", b"PK\x03\x04 half an archive"):
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"^{path}: "):
                load_data("mnist", folder=tmp_path)
        with path.open("wb") as file:
            np.save(file, noise(2, 28, 28))
        with pytest.raises(UserError, match="a single array"):
            load_data("mnist", folder=tmp_path)

    def test_any_damage_is_found_or_harmless(self, tmp_path: Path) -> None:
        path = mnist_npz(tmp_path)
        whole, before = path.read_bytes(), load_data("mnist", folder=tmp_path).digest()
        rng = np.random.default_rng(1)
        for place in rng.integers(0, len(whole), 150):
            damaged = bytearray(whole)
            damaged[place] ^= int(rng.integers(1, 256))
            for content in (bytes(damaged), whole[:place]):
                path.write_bytes(content)
                try:
                    assert load_data("mnist", folder=tmp_path).digest() == before
                except UserError as error:
                    assert str(path) in str(error)  # noqa: PT017
                    assert "\n" not in str(error)  # noqa: PT017

    def test_unreadable_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = mnist_npz(tmp_path)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(np, "load", refuse)
        with pytest.raises(UserError, match=r"test\.npz: cannot be read \(Permission denied\)"):
            load_data("mnist", folder=tmp_path)

    def test_own_folder_in_the_packed_layout(self, tmp_path: Path) -> None:
        write_npz(tmp_path / "train.npz", images=noise(3, 6, 7), labels=[0, 2, 1])
        found = load_data(tmp_path, "train")
        assert (found.name, found.shape, found.classes) == (str(tmp_path), (1, 6, 7), ("0", "1", "2"))
