"""Find a data set by its name or its folder, and read it whatever its layout."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualstudent.data import formats, pictures
from dualstudent.data.facts import DATA_SETS, SPLITS, DataSet, find
from dualstudent.data.images import Images, checked
from dualstudent.data.raw import Raw
from dualstudent.errors import Missing, UserError, unknown

VARIABLE = "DUALSTUDENT_DATA"


class _Published(NamedTuple):
    """A published layout: its reader, and the file names to look for, for error messages."""

    read: Callable[[Path, str], Raw | None]
    train: str
    test: str


_IDX = _Published(
    formats.read_idx,
    *(f"{p}-images-idx3-ubyte[.gz] and {p}-labels-idx1-ubyte[.gz]" for p in ("train", "t10k")),
)
_CIFAR10 = "cifar-10-batches-bin/{}.bin or cifar-10-binary.tar.gz"
_CIFAR100 = "cifar-100-binary/{}.bin or cifar-100-binary.tar.gz"
_PUBLISHED: Mapping[str, _Published] = {
    "mnist": _IDX,
    "fashion-mnist": _IDX,
    "svhn": _Published(formats.read_svhn, "train_32x32.mat", "test_32x32.mat"),
    "gtsrb": _Published(
        pictures.read_gtsrb,
        "GTSRB/Final_Training/Images/00000/GT-00000.csv or GTSRB_Final_Training_Images.zip",
        "GTSRB/Final_Test/Images and GT-final_test.csv, or GTSRB_Final_Test_{Images,GT}.zip",
    ),
    "cifar10": _Published(
        formats.read_cifar10, _CIFAR10.format("data_batch_1..5"), _CIFAR10.format("test_batch")
    ),
    "cifar100": _Published(formats.read_cifar100, _CIFAR100.format("train"), _CIFAR100.format("test")),
}


def load_data(name: str | Path, split: str = "test", *, folder: str | Path | None = None) -> Images:
    """Load a split of a known data set, or of a folder of class folders if `name` is a directory.

    Data sets other than digits are looked for in `folder`, else in the folder that the environment
    variable DUALSTUDENT_DATA names. A known name wins over a directory of that name in the working
    directory; say ./NAME or give a Path to mean the directory. Raises UserError.
    """
    try:
        return _load(name, split, folder)
    except OSError as error:  # a folder that may not be searched, a name too long
        raise UserError(f"{error.filename or name}: cannot be read ({error.strerror})") from error


def _load(name: str | Path, split: str, folder: str | Path | None) -> Images:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    facts = None if isinstance(name, Path) and name.is_dir() else find(str(name))
    if split == "test_lossless" and facts is not DATA_SETS["cifar10"]:
        raise UserError(f"{name} has no split 'test_lossless', only cifar10 has: use 'test'")
    if facts is None:
        return checked(_read_own(name, split), str(name), split, None)
    raw = _digits(split) if facts.name == "digits" else _read_known(facts, split, folder)
    return checked(raw, facts.name, split, facts)


def _read_own(name: str | Path, split: str) -> Raw:
    root = Path(name)
    if name == "" or not root.is_dir():
        if isinstance(name, Path) or os.sep in name:
            raise Missing(
                f"no folder {root}: give a folder of class folders or one of {', '.join(DATA_SETS)}"
            )
        raise unknown("data set", name, DATA_SETS)
    packed = root / f"{split}.npz"
    return formats.read_npz(packed) if packed.is_file() else pictures.read_class_folders(root, split)


def _read_known(facts: DataSet, split: str, folder: str | Path | None) -> Raw:
    published = _PUBLISHED[facts.name]
    places = _places(facts, folder)
    for place in places:
        if (place / f"{split}.npz").is_file():
            return formats.read_npz(place / f"{split}.npz")
        raw = published.read(place, split) if split != "test_lossless" else None
        if raw is not None:
            return raw
    names = f"{split}.npz"
    if split == "test_lossless":
        mend = "the published files are lossless in split 'test'"
    else:
        names += f", {published.train if split == 'train' else published.test}"
        mend = f"'dualstudent data get {facts.name}' downloads the published files"
    looked = " or ".join(str(place) for place in places)
    raise Missing(f"no {split} images of {facts.name}: looked in {looked} for {names}; {mend}")


def _places(facts: DataSet, folder: str | Path | None) -> list[Path]:
    """Return where a data set may lie: in a folder of its name, or in the data folder itself."""
    given = folder or os.environ.get(VARIABLE)
    if not given:
        raise Missing(
            f"no data folder: give --data-dir or set {VARIABLE}; looked for a folder with {facts.name}/"
        )
    base = Path(given)
    if not base.is_dir():
        raise Missing(f"no data folder: give --data-dir or set {VARIABLE}; looked for {base}")
    places = list(dict.fromkeys(base / name for name in (facts.name.replace("-", "_"), facts.name)))
    # Files of MNIST and Fashion-MNIST have the same names: never read another data set's own folder.
    return places if find(base.resolve().name) not in (None, facts) else [*places, base]


def _digits(split: str) -> Raw:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels: 897 to train, 900 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    rows = train_test_split(
        np.arange(len(images)), train_size=897, test_size=900, random_state=0, stratify=data.target
    )[SPLITS.index(split)]
    return Raw("scikit-learn's digits", images[rows], data.target[rows])
