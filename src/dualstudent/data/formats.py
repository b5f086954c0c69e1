"""Readers of number files: the packed .npz, and IDX, CIFAR binary and SVHN's .mat as published.

Each reader of a published layout returns None where none of its files lie in the folder.
"""

import gzip
import math
import struct
import tarfile
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy.lib.npyio import NpzFile

from dualstudent.data.pictures import decode_streams
from dualstudent.data.raw import Raw, broken, reading
from dualstudent.errors import UserError


def read_npz(path: Path) -> Raw:
    """Read `labels`, `classes` and either `images` or `jpeg` with `offsets`. Raises UserError."""
    with reading(path), path.open("rb") as file:  # opened here: np.load leaves broken files open
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, NpzFile):
            raise broken(path, "a single array instead of an .npz archive")
        with archive:
            keys = ("images", "jpeg", "offsets", "labels", "classes")
            data = {key: archive[key] for key in keys if key in archive.files}
    if "labels" not in data or not ("images" in data or {"jpeg", "offsets"} <= data.keys()):
        raise broken(path, "neither 'images' nor 'jpeg' and 'offsets', or no 'labels'")
    if "images" in data:
        images = _channels_first(data["images"], path)
    else:
        images = decode_streams(path, data["jpeg"], data["offsets"])
    classes = tuple(str(name) for name in data["classes"].ravel()) if "classes" in data else None
    return Raw(str(path), images, data["labels"], classes)


def _channels_first(images: np.ndarray, where: object) -> UInt8[np.ndarray, "n c h w"]:
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    raise broken(where, f"images of type {images.dtype} and shape {images.shape}, not uint8 (n, h, w[, 3])")


def read_idx(root: Path, split: str) -> Raw | None:
    """Read the two IDX files of a split of MNIST or Fashion-MNIST, plain or .gz. Raises UserError."""
    prefix = "t10k" if split == "test" else "train"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    paths = [_first(root / name, root / f"{name}.gz") for name in names]
    if paths == [None, None]:
        return None
    arrays = []
    for name, path, dimensions in zip(names, paths, (3, 1), strict=True):
        if path is None:
            raise UserError(f"{root} lacks {name}[.gz]: add it, or fetch the data set again")
        with reading(path):
            data = path.read_bytes()
            arrays.append(
                parse_idx(gzip.decompress(data) if path.suffix == ".gz" else data, path, dimensions)
            )
    return Raw(str(paths[0]), arrays[0][:, None], arrays[1])


def parse_idx(data: bytes, where: object, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Return the array of an IDX file of bytes. Raises UserError on any other bytes."""
    head = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < head:
        raise broken(where, f"it begins with '{data[:4].hex()}', unlike IDX bytes of {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    if len(data) - head != math.prod(shape):
        raise broken(where, f"{len(data) - head} bytes for an array of {' x '.join(map(str, shape))}")
    if 0 in shape:
        raise UserError(f"{where} holds no images")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def read_cifar10(root: Path, split: str) -> Raw | None:
    """Read a split of CIFAR-10's binary version, unpacked or not. Raises UserError."""
    names = ["test_batch.bin"] if split == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _read_cifar(root, "cifar-10-batches-bin", "cifar-10-binary.tar.gz", names, label_bytes=1)


def read_cifar100(root: Path, split: str) -> Raw | None:
    """Read a split of CIFAR-100's binary version, fine labels, unpacked or not. Raises UserError."""
    return _read_cifar(root, "cifar-100-binary", "cifar-100-binary.tar.gz", [f"{split}.bin"], label_bytes=2)


def _read_cifar(root: Path, inner: str, archive: str, names: list[str], label_bytes: int) -> Raw | None:
    place = next((p for p in (root / inner, root) if any((p / name).exists() for name in names)), None)
    if place is not None:
        files = {}
        for name in names:
            with reading(place / name):
                files[name] = (place / name).read_bytes()
    elif (root / archive).is_file():
        place = root / archive
        members = _tar_members(place, {f"{inner}/{name}" for name in names})
        files = {name: members[f"{inner}/{name}"] for name in names}
    else:
        return None
    parts = [parse_cifar(files[name], place / name, label_bytes) for name in names]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Raw(str(place), images, labels)


def parse_cifar(
    data: bytes, where: object, label_bytes: int
) -> tuple[UInt8[np.ndarray, "n 3 32 32"], UInt8[np.ndarray, "n"]]:
    """Return images and labels of a CIFAR file; of two label bytes the last counts. Raises UserError."""
    row = label_bytes + 3 * 32 * 32
    if not data or len(data) % row:
        raise broken(where, f"{len(data)} bytes are no positive multiple of {row}, the size of an image")
    rows = np.frombuffer(data, np.uint8).reshape(-1, row)
    return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1]


def _tar_members(path: Path, names: set[str]) -> dict[str, bytes]:
    """Read members of a .tar.gz into memory, in one pass; nothing is unpacked to disk."""
    found: dict[str, bytes] = {}
    with reading(path), gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                content = tar.extractfile(member) if name in names and member.isfile() else None
                if content is not None:
                    found[name] = content.read()
        while stream.read(1 << 20):  # to the end, where gzip checks its sum
            pass
    if names - found.keys():
        raise broken(path, f"no member {sorted(names - found.keys())[0]}")
    return found


def read_svhn(root: Path, split: str) -> Raw | None:
    """Read a split of SVHN's cropped digits (.mat), whose label 10 is the digit 0. Raises UserError."""
    path = root / f"{split}_32x32.mat"
    if not path.is_file():
        return None
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadWarning
    except ImportError as error:
        raise UserError(f"{path} needs SciPy: pip install dualstudent[data]") from error
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", MatReadWarning)
        data = loadmat(path, variable_names=["X", "y"])
    images, labels = np.asarray(data.get("X")), np.asarray(data.get("y"))
    if images.dtype != np.uint8 or images.ndim != 4 or labels.dtype.kind not in "iu":
        raise broken(path, "no uint8 array X of four dimensions, or no integer array y")
    labels = labels.ravel()
    return Raw(str(path), images.transpose(3, 2, 0, 1), np.where(labels == 10, 0, labels))
