"""The published layouts of arrays, read from small files that these tests write."""

import gzip
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dualstudent.data import Images, load_data
from dualstudent.data.formats import parse_idx
from dualstudent.errors import UserError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def picture(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def same(found: Images, images: np.ndarray, labels: list[int]) -> bool:
    return np.array_equal(found.images.numpy(), images) and found.labels.tolist() == labels


class TestIdx:
    @pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
    def test_reads(self, tmp_path: Path, name: str, split: str, prefix: str, suffix: str) -> None:
        pack = gzip.compress if suffix else bytes
        put(tmp_path / name / f"{prefix}-images-idx3-ubyte{suffix}", pack(idx(noise(4, 28, 28))))
        put(tmp_path / name / f"{prefix}-labels-idx1-ubyte{suffix}", pack(idx(np.array([3, 1, 9, 0]))))
        assert same(load_data(name, split, folder=tmp_path), noise(4, 1, 28, 28), [3, 1, 9, 0])

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (
                idx(noise(2, 28, 28))[:-1],
                idx(np.array([1, 2])),
                "images.*1567 bytes for an array of 2 x 28 x 28",
            ),
            (idx(noise(2, 28, 28)) + b"x", idx(np.array([1, 2])), "images.*1569 bytes"),
            (idx(noise(2, 28, 28)), idx(np.array([1])), "2 images but 1 labels"),
            (idx(noise(2, 28, 28)), idx(np.array([1, 10])), "labels 1 to 10 for 10 classes"),
            (idx(noise(2, 28, 28)), idx(noise(2, 2)), "labels.*it begins with '00000802'"),
            (idx(noise(2, 28)), idx(np.array([1, 2])), "images.*it begins with '00000802'"),
            (idx(noise(2, 8, 8)), idx(np.array([1, 2])), "is it another data set?"),
            (idx(noise(0, 28, 28)), idx(np.array([])), "holds no images"),
            (b"", idx(np.array([1])), "images.*it begins with ''"),
        ],
    )
    def test_wrong_files(self, tmp_path: Path, images: bytes, labels: bytes, message: str) -> None:
        put(tmp_path / "mnist" / "t10k-images-idx3-ubyte", images)
        put(tmp_path / "mnist" / "t10k-labels-idx1-ubyte", labels)
        with pytest.raises(UserError, match=message):
            load_data("mnist", folder=tmp_path)

    def test_labels_missing(self, tmp_path: Path) -> None:
        put(tmp_path / "mnist" / "t10k-images-idx3-ubyte", idx(noise(2, 28, 28)))
        with pytest.raises(UserError, match=r"lacks t10k-labels-idx1-ubyte\[\.gz\]"):
            load_data("mnist", folder=tmp_path)

    @given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: bytes((0, 0, 8, 3)) + tail))
    def test_arbitrary_bytes_raise_user_error_alone(self, content: bytes) -> None:
        for dimensions in (1, 3):
            try:
                array = parse_idx(content, "it", dimensions)
            except UserError as error:
                assert str(error).startswith("it")  # noqa: PT017
            else:
                assert idx(array) == content

    @given(st.lists(st.integers(1, 5), min_size=3, max_size=3))
    def test_round_trip(self, shape: list[int]) -> None:
        assert np.array_equal(parse_idx(idx(noise(*shape)), "it", 3), noise(*shape))

    @pytest.mark.data
    @pytest.mark.skipif("DUALSTUDENT_DATA" not in os.environ, reason="DUALSTUDENT_DATA names no folder")
    @pytest.mark.parametrize(
        ("name", "split", "md5"),
        [
            ("mnist", "train", "6bbc9ace898e44ae57da46a324031adb"),
            ("mnist", "test", "2646ac647ad5339dbf082846283269ea"),
            ("fashion-mnist", "test", "8181f5470baa50b63fa0f6fddb340f0a"),
        ],
    )
    def test_the_real_images_have_the_published_sums(self, name: str, split: str, md5: str) -> None:
        images = load_data(name, split).images[:, 0].numpy()
        assert hashlib.md5(idx(images)).hexdigest() == md5


CIFAR = {
    "cifar10": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    "cifar100": ("cifar-100-binary", "cifar-100-binary.tar.gz"),
}


def cifar(labels: list[int], images: np.ndarray, coarse: bool) -> bytes:
    """Return a CIFAR file; with coarse labels, each row begins with one that must not be read."""
    head = bytes((77,)) if coarse else b""
    return b"".join(
        head + bytes((label,)) + image.tobytes() for label, image in zip(labels, images, strict=True)
    )


def cifar_files(name: str) -> dict[str, bytes]:
    images = noise(6, 3, 32, 32)
    if name == "cifar100":
        return {"train.bin": cifar([99, 5], images[:2], True), "test.bin": cifar([7], images[5:], True)}
    batches = {f"data_batch_{i + 1}.bin": cifar([i], images[i : i + 1], False) for i in range(5)}
    return {**batches, "test_batch.bin": cifar([7], images[5:], False)}


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


class TestCifar:
    @pytest.mark.parametrize("layout", ["inner folder", "own folder", "archive", "archive with ./"])
    @pytest.mark.parametrize("name", ["cifar10", "cifar100"])
    def test_reads(self, tmp_path: Path, name: str, layout: str) -> None:
        inner, archive = CIFAR[name]
        if layout.startswith("archive"):
            dot = layout.removeprefix("archive with ") if "with" in layout else ""
            members = {f"{dot}{inner}/{file}": content for file, content in cifar_files(name).items()}
            write_tar(tmp_path / name / archive, {"readme.html": b"hello", **members})
        else:
            folder = tmp_path / name / (inner if layout == "inner folder" else ".")
            for file, content in cifar_files(name).items():
                put(folder / file, content)
        images = noise(6, 3, 32, 32)
        assert same(load_data(name, "test", folder=tmp_path), images[5:], [7])
        train = ([99, 5], images[:2]) if name == "cifar100" else ([0, 1, 2, 3, 4], images[:5])
        assert same(load_data(name, "train", folder=tmp_path), train[1], train[0])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "0 bytes are no positive multiple of 3073"),
            (bytes(3072), "3072 bytes are no positive multiple"),
            (bytes((10,)) + bytes(3072), "labels 10 to 10 for 10 classes"),
        ],
    )
    def test_wrong_length_or_label(self, tmp_path: Path, content: bytes, message: str) -> None:
        put(tmp_path / "cifar10" / "cifar-10-batches-bin" / "test_batch.bin", content)
        with pytest.raises(UserError, match=message):
            load_data("cifar10", folder=tmp_path)

    def test_missing_batch(self, tmp_path: Path) -> None:
        put(tmp_path / "cifar10" / "data_batch_1.bin", cifar_files("cifar10")["data_batch_1.bin"])
        with pytest.raises(UserError, match=r"data_batch_2\.bin: cannot be read \(No such file"):
            load_data("cifar10", "train", folder=tmp_path)
        write_tar(tmp_path / "b" / "cifar-10-binary.tar.gz", {"cifar-10-batches-bin/data_batch_1.bin": b"x"})
        with pytest.raises(UserError, match=r"no member cifar-10-batches-bin/data_batch_2\.bin"):
            load_data("cifar10", "train", folder=tmp_path / "b")

    def test_link_in_place_of_a_member(self, tmp_path: Path) -> None:
        path = tmp_path / "cifar-10-binary.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(link)
        with pytest.raises(UserError, match="no member"):
            load_data("cifar10", folder=tmp_path)

    def test_damaged_archive(self, tmp_path: Path) -> None:
        members = {f"cifar-10-batches-bin/{name}": data for name, data in cifar_files("cifar10").items()}
        path = write_tar(tmp_path / "cifar-10-binary.tar.gz", members)
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        for place in rng.integers(10, len(whole), 40):  # the first ten bytes hold a time, not checked
            flipped = bytearray(whole)
            flipped[place] ^= int(rng.integers(1, 256))
            for content in (bytes(flipped), whole[:place]):
                path.write_bytes(content)
                with pytest.raises(UserError, match=f"^{path}: "):
                    load_data("cifar10", folder=tmp_path)


class TestSvhn:
    def write(self, folder: Path, **changes: object) -> Path:
        folder.mkdir(exist_ok=True)
        arrays = {"X": noise(32, 32, 3, 4), "y": np.array([[1], [10], [9], [2]], np.uint8)}
        scipy.io.savemat(folder / "test_32x32.mat", {**arrays, **changes}, do_compression=True)
        return folder / "test_32x32.mat"

    def test_reads_and_calls_ten_zero(self, tmp_path: Path) -> None:
        self.write(tmp_path / "svhn")
        images = noise(32, 32, 3, 4).transpose(3, 2, 0, 1)
        assert same(load_data("svhn", folder=tmp_path), images, [1, 0, 9, 2])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"y": np.array([[1], [11], [2], [3]])}, "labels 1 to 11 for 10 classes"),
            ({"y": np.array([[1], [2]])}, "4 images but 2 labels"),
            ({"y": np.array([[0.5]])}, "no uint8 array X of four dimensions, or no integer array y"),
            ({"X": np.array([["a", 1.5]], dtype=object)}, "no uint8 array X"),
            ({"X": {"a": 1}}, "no uint8 array X"),
            ({"X": noise(32, 32)}, "no uint8 array X"),
            ({"X": noise(8, 8, 3, 4)}, "is it another data set?"),
        ],
    )
    def test_wrong_arrays(self, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        self.write(tmp_path / "svhn", **changes)
        with pytest.raises(UserError, match=message):
            load_data("svhn", folder=tmp_path)

    def test_missing_array_and_damage(self, tmp_path: Path) -> None:
        scipy.io.savemat(tmp_path / "test_32x32.mat", {"y": np.array([[1]])})
        with pytest.raises(UserError, match="no uint8 array X"):
            load_data("svhn", folder=tmp_path)
        whole = self.write(tmp_path).read_bytes()
        for content in (b"", b"x" * 200, whole[:100], whole[:-50], whole[:500] + b"!" * 50 + whole[550:]):
            put(tmp_path / "test_32x32.mat", content)
            with pytest.raises(UserError, match=r"test_32x32\.mat: "):
                load_data("svhn", folder=tmp_path)

    def test_without_scipy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(tmp_path)
        monkeypatch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(UserError, match=r"pip install dualstudent\[data\]"):
            load_data("svhn", folder=tmp_path)
