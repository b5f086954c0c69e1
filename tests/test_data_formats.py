"""The published layouts and class folders, read from small files that these tests write."""

import gzip
import hashlib
import io
import os
import sys
import tarfile
import zipfile
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


HEAD = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"


def gtsrb_files() -> dict[str, bytes]:
    """Return a tiny GTSRB: one grey-valued image a class to train, two to test."""
    files = {}
    for label in range(43):
        folder = f"GTSRB/Final_Training/Images/{label:05d}"
        files[f"{folder}/00000_00000.ppm"] = picture(np.full((30 + label, 40, 3), label, np.uint8), "PPM")
        files[f"{folder}/GT-{label:05d}.csv"] = f"{HEAD}00000_00000.ppm;40;30;5;5;35;25;{label}\n".encode()
    for i in range(2):
        files[f"GTSRB/Final_Test/Images/{i:05d}.ppm"] = picture(noise(32, 32, 3, seed=i), "PPM")
    files["GT-final_test.csv"] = f"{HEAD}00000.ppm;32;32;5;5;27;27;16\n00001.ppm;32;32;5;5;27;27;1\n".encode()
    return files


class TestGtsrb:
    @pytest.mark.parametrize("layout", ["folders", "own folder", "archives"])
    def test_reads(self, tmp_path: Path, layout: str) -> None:
        root = tmp_path / "gtsrb"
        root.mkdir()
        for name, content in gtsrb_files().items():
            if layout == "archives":
                part = (
                    "Training_Images"
                    if "Training" in name
                    else "Test_Images"
                    if "Test/" in name
                    else "Test_GT"
                )
                with zipfile.ZipFile(root / f"GTSRB_Final_{part}.zip", "a") as archive:
                    archive.writestr(name, content)
            else:
                put(root / (name if layout == "folders" else name.removeprefix("GTSRB/")), content)
        test = load_data("gtsrb", folder=tmp_path)
        assert same(
            test, np.stack([noise(32, 32, 3, seed=i) for i in range(2)]).transpose(0, 3, 1, 2), [16, 1]
        )
        assert test.classes[14] == "Stop"
        train = load_data("gtsrb", "train", folder=tmp_path)
        assert train.shape == (3, 32, 32)
        assert train.labels.tolist() == train.images[:, 0, 0, 0].tolist() == list(range(43))

    @pytest.mark.parametrize(
        ("split", "name", "content", "message"),
        [
            ("test", "GT-final_test.csv", HEAD.encode(), "list no images"),
            ("test", "GT-final_test.csv", b"a;b\n1;2\n", "KeyError"),
            ("test", "GT-final_test.csv", b"\xff\xfe;\n", "UnicodeDecodeError"),
            ("test", "GT-final_test.csv", b"Filename;ClassId\n00000.ppm;x\n", "ValueError"),
            (
                "test",
                "GT-final_test.csv",
                b"Filename;ClassId\n00000.ppm;43\n",
                "labels 43 to 43 for 43 classes",
            ),
            (
                "test",
                "GT-final_test.csv",
                b"Filename;ClassId\n../up.ppm;1\n",
                "a file name with a folder in it",
            ),
            (
                "test",
                "GT-final_test.csv",
                b"Filename;ClassId\n9.ppm;1\n",
                r"lacks GTSRB's Final_Test/Images/9\.ppm",
            ),
            ("test", "GTSRB/Final_Test/Images/00001.ppm", b"P6 32 32 255 ", r"Images/00001\.ppm: OSError"),
            (
                "train",
                "GTSRB/Final_Training/Images/00007/GT-00007.csv",
                None,
                r"lacks GTSRB's .*GT-00007\.csv",
            ),
            ("test", "GTSRB_Final_Test_Images.zip", b"no archive", r"Test_Images\.zip: BadZipFile"),
        ],
    )
    def test_wrong_files(
        self, tmp_path: Path, split: str, name: str, content: bytes | None, message: str
    ) -> None:
        files = gtsrb_files()
        files[name] = content or b""
        if content is None:
            del files[name]
        for file, data in files.items():
            put(tmp_path / "gtsrb" / file, data)
        with pytest.raises(UserError, match=message):
            load_data("gtsrb", split, folder=tmp_path)


class TestClassFolders:
    def test_classes_are_sorted_and_images_too(self, tmp_path: Path) -> None:
        put(tmp_path / "dog" / "1.png", picture(noise(6, 7, 3, seed=1)))
        put(tmp_path / "cat" / "b.BMP", picture(noise(6, 7, 3, seed=2), "BMP"))
        put(tmp_path / "cat" / "a.ppm", picture(noise(6, 7, 3, seed=3), "PPM"))
        put(tmp_path / "cat" / "notes.txt", b"no image")
        put(tmp_path / "cat" / "._a.png", b"no image")
        put(tmp_path / ".cache" / "x.png", b"no image")
        put(tmp_path / "readme.md", b"no class")
        found = load_data(str(tmp_path))
        assert (found.name, found.classes, found.shape) == (str(tmp_path), ("cat", "dog"), (3, 6, 7))
        expected = np.stack([noise(6, 7, 3, seed=seed) for seed in (3, 2, 1)]).transpose(0, 3, 1, 2)
        assert same(found, expected, [0, 0, 1])

    def test_train_and_test_share_their_classes(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c"):
            put(tmp_path / "train" / name / "1.png", picture(noise(4, 4)))
        put(tmp_path / "test" / "c" / "1.png", picture(noise(4, 4)))
        assert load_data(tmp_path, "train").labels.tolist() == [0, 1, 2]
        found = load_data(tmp_path, "test")
        assert (found.labels.tolist(), found.classes) == ([2], ("a", "b", "c"))

    def test_grey_images_have_one_channel_unless_mixed_with_colour(self, tmp_path: Path) -> None:
        put(tmp_path / "a" / "1.png", picture(noise(4, 5)))
        put(tmp_path / "a" / "2.jpg", picture(noise(4, 5, seed=1), "JPEG"))
        put(tmp_path / "b" / "3.png", picture(noise(4, 5) > 128))
        assert load_data(tmp_path).shape == (1, 4, 5)
        put(tmp_path / "b" / "4.png", picture(noise(4, 5, 4)))
        mixed = load_data(tmp_path)
        assert mixed.shape == (3, 4, 5)
        assert np.array_equal(mixed.images[0].numpy(), np.repeat(noise(1, 4, 5), 3, axis=0))
        assert np.array_equal(mixed.images[3].numpy(), noise(4, 5, 4)[..., :3].transpose(2, 0, 1))

    def test_palettes(self, tmp_path: Path) -> None:
        colours = Image.fromarray(noise(4, 5, 3)).quantize(8)
        for name, extra in (("1", {}), ("2", {"transparency": bytes(range(8))})):
            buffer = io.BytesIO()
            colours.save(buffer, "PNG", **extra)
            put(tmp_path / "a" / f"{name}.png", buffer.getvalue())
        put(tmp_path / "b" / "3.png", picture(np.asarray(colours.convert("RGB"))))
        images = load_data(tmp_path).images
        assert (images[0] == images[2]).all()
        assert (images[1] == images[2]).all()

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("b/2.png", picture(noise(5, 4)), r"2\.png is 4 x 5 pixels, but .*1\.png is 5 x 4: resize"),
            ("b/2.png", b"", r"2\.png: UnidentifiedImageError"),
            ("b/2.png", picture(noise(4, 5))[:-30], r"2\.png: \w+"),
            ("b/2.jpg", picture(noise(64, 64), "JPEG")[:400], r"2\.jpg: OSError: .*truncated"),
            ("b/2.png", picture(noise(4, 5).astype(np.uint16) * 256), "more than 8 bits a channel"),
            ("b/2.bmp", b"GIF89a" + bytes(50), r"2\.bmp: UnidentifiedImageError"),
        ],
    )
    def test_wrong_images(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        put(tmp_path / "a" / "1.png", picture(noise(4, 5)))
        put(tmp_path / name, content)
        with pytest.raises(UserError, match=message) as caught:
            load_data(tmp_path)
        assert "\n" not in str(caught.value)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no class folders"):
            load_data(tmp_path)
        (tmp_path / "a").mkdir()
        with pytest.raises(UserError, match=r"holds no images: its class folders have none of \.png, \.jpg"):
            load_data(tmp_path)
