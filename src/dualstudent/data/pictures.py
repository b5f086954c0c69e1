"""Readers of picture files through Pillow: JPEG streams, GTSRB as published, folders of class folders."""

import csv
import io
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dualstudent.data.raw import Raw, broken, reading
from dualstudent.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp")


def decode(data: bytes, where: object, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w ..."]:
    """Return a picture as (h, w) if it is grey and as (h, w, 3) otherwise; alpha is dropped.

    With `size` (width, height) it is resized, bilinearly and as RGB. Raises UserError.
    """
    from PIL import Image

    with reading(where), Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "PPM", "BMP")) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{where}: more than 8 bits a channel ({image.mode}); convert it to 8 bits")
        if size is not None:
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        if image.mode in ("1", "L"):
            return np.asarray(image.convert("L"))
        transparent = image.mode == "P" and "transparency" in image.info
        return np.asarray((image.convert("RGBA") if transparent else image).convert("RGB"))


def stack(pictures: Sequence[np.ndarray], names: Sequence[object]) -> UInt8[np.ndarray, "n c h w"]:
    """Stack pictures of one size: all grey gives one channel, else three. Raises UserError."""
    height, width = pictures[0].shape[:2]
    channels = max(3 if picture.ndim == 3 else 1 for picture in pictures)
    images = np.empty((len(pictures), channels, height, width), np.uint8)
    for i, picture in enumerate(pictures):
        if picture.shape[:2] != (height, width):
            raise UserError(
                f"{names[i]} is {picture.shape[1]} x {picture.shape[0]} pixels, but {names[0]} is "
                f"{width} x {height}: resize the images to one size"
            )
        images[i] = picture if picture.ndim == 2 else picture.transpose(2, 0, 1)
    return images


def decode_streams(path: Path, jpeg: np.ndarray, offsets: np.ndarray) -> UInt8[np.ndarray, "n c h w"]:
    """Return the images of JPEG streams that lie one after another in one array. Raises UserError."""
    fits = jpeg.dtype == np.uint8 and jpeg.ndim == 1 and offsets.dtype.kind in "iu" and offsets.ndim == 1
    if (
        not fits
        or not len(offsets)
        or offsets[0] < 0
        or offsets[-1] > len(jpeg)
        or (np.diff(offsets) <= 0).any()
    ):
        raise broken(path, "'offsets' do not cut 'jpeg' into streams")
    if len(offsets) == 1:
        raise UserError(f"{path} holds no images")
    pictures, names = [], []
    for i, (start, stop) in enumerate(pairwise(offsets)):
        names.append(f"image {i} of {path}")
        pictures.append(decode(jpeg[start:stop].tobytes(), names[-1]))
    return stack(pictures, names)


class _GtsrbFiles:
    """GTSRB's files by their published names, be they unpacked or still in the published .zip files."""

    def __init__(self, root: Path, zips: ExitStack) -> None:
        self._folders = (root, root / "GTSRB")
        self._zips = []
        for path in sorted(root.glob("GTSRB_Final_*.zip")):
            with reading(path):
                archive = zips.enter_context(zipfile.ZipFile(path))
                names = {name.removeprefix("GTSRB/"): name for name in archive.namelist()}
                self._zips.append((path, archive, names))

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a file, None where it lies nowhere."""
        for folder in self._folders:
            if (folder / name).is_file():
                with reading(folder / name):
                    return (folder / name).read_bytes()
        for path, archive, names in self._zips:
            if name in names:
                with reading(path):
                    return archive.read(names[name])
        return None


def read_gtsrb(root: Path, split: str) -> Raw | None:
    """Read a split of GTSRB: whole frames, resized to 32 x 32, in the order of the official tables.

    Other sources cut out the sign's box first, or resize without smoothing (OpenCV does), so that
    pixels differ between sources. Raises UserError.
    """
    if split == "train":
        folders = [f"Final_Training/Images/{label:05d}" for label in range(43)]
        tables = [(f"{folder}/GT-{folder[-5:]}.csv", folder) for folder in folders]
    else:
        tables = [("GT-final_test.csv", "Final_Test/Images")]
    with ExitStack() as zips:
        files = _GtsrbFiles(root, zips)
        texts = [_table(files, name, folder) for name, folder in tables]
        if not any(texts):
            return None
        pictures: list[np.ndarray] = []
        labels: list[int] = []
        names: list[str] = []
        for (name, folder), text in zip(tables, texts, strict=True):
            if text is None:
                raise UserError(f"{root} lacks GTSRB's {name}: unpack the data set again")
            for file, label in _rows(text, f"{root}: {name}"):
                data = files.get(f"{folder}/{file}")
                if data is None:
                    raise UserError(f"{root} lacks GTSRB's {folder}/{file}: unpack the data set again")
                names.append(f"{root}: {folder}/{file}")
                pictures.append(decode(data, names[-1], size=(32, 32)))
                labels.append(label)
    if not pictures:
        raise UserError(f"{root}: the tables of GTSRB's {split} split list no images")
    return Raw(str(root), stack(pictures, names), np.array(labels))


def _table(files: _GtsrbFiles, name: str, folder: str) -> bytes | None:
    """Return a table, which people also put beside the images."""
    return files.get(name) or files.get(f"{folder}/{name}")


def _rows(table: bytes, where: str) -> list[tuple[str, int]]:
    """Return file name and label of each row of an annotation table. Raises UserError."""
    with reading(where):
        rows = csv.DictReader(io.StringIO(table.decode()), delimiter=";")
        found = [(row["Filename"], int(row["ClassId"])) for row in rows]
        if any("/" in file or "\\" in file for file, _ in found):
            raise broken(where, "a file name with a folder in it")
    return found


def read_class_folders(root: Path, split: str) -> Raw:
    """Read a folder of class folders, or of train/ and test/ that hold them. Raises UserError."""
    divided = [root / name for name in ("train", "test")]
    if all(folder.is_dir() for folder in divided):
        names = sorted({name for folder in divided for name in _subfolders(folder)})
        root = root / split
    else:
        names = _subfolders(root)
    if not names:
        raise UserError(
            f"{root} holds no class folders: put the images of each class into a folder of its own"
        )
    files = [(path, label) for label, name in enumerate(names) for path in _pictures(root / name)]
    if not files:
        raise UserError(f"{root} holds no images: its class folders have none of {', '.join(SUFFIXES)}")
    paths = [path for path, _ in files]
    pictures = []
    for path in paths:
        with reading(path):
            pictures.append(decode(path.read_bytes(), path))
    return Raw(str(root), stack(pictures, paths), np.array([label for _, label in files]), tuple(names))


def _subfolders(folder: Path) -> list[str]:
    with reading(folder):
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():  # a class that only the other split has
        return []
    with reading(folder):
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
