"""Readers of picture files: GTSRB as published, folders of class folders."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualstudent.data import load_data
from dualstudent.errors import UserError
from test_data_formats import noise, picture, put, same

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
