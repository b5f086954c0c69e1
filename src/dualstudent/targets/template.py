"""Template files: how any JSON service is asked, and where its answers are (docs/services.md)."""

import base64
import hashlib
import io
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from dualstudent.errors import TargetError, UserError, unknown
from dualstudent.targets.strict import plain

Form = Literal["list", "base64 float32", "base64 uint8", "base64 png"]
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+|\*)\]")
Step = str | int  # "*": all of a list


@dataclass(frozen=True)
class Template:
    """How images become a request and a reply becomes answers. Raises UserError for what makes no sense."""

    body: Any  # the request; "$images" in it is replaced by the images, "$image" by the only one
    answers: str  # path to the answers, as in predictions[*].scores
    image: Form = "list"  # what an image becomes
    item: Any = "$image"  # what stands for each image in "$images"
    layout: Literal["nchw", "nhwc"] = "nchw"  # order of its numbers
    range: tuple[float, float] | None = None  # what the bounds become; default: unchanged
    whole: bool = False  # numbers are rounded
    shape: tuple[int, int, int] | None = None  # channels, height, width
    classes: list[str] | None = None  # names in the order of the classes
    name: str | None = None  # in answers that are lists of objects: the key of the class's name
    score: str | None = None  # and of its probability
    decimals: int | None = None  # places to which probabilities are rounded
    version: str | None = None  # path to the model's version
    sha256: str = field(default="", compare=False)

    @property
    def single(self) -> bool:
        """Whether a request holds one image."""
        return not _holds(self.body, "$images")

    @property
    def levels(self) -> int | None:
        """Number of values that an entry of an image can have, None for any."""
        if self.image in ("base64 uint8", "base64 png"):
            return 256
        low, high = self.range or (0.0, 1.0)
        return int(high - low) + 1 if self.whole else None

    def __post_init__(self) -> None:
        if not (_holds(self.body, "$images") ^ _holds(self.body, "$image")):
            raise UserError('body: put "$images" where a list of images goes, or "$image" for a single one')
        if not _holds(self.item, "$image"):
            raise UserError('item: put "$image" where the image goes')
        if self.whole and (self.range is None or any(v != int(v) for v in self.range)):
            raise UserError("whole: give the range of whole numbers, as in range = [0, 255]")
        if self.image != "list" and self.whole:
            raise UserError("whole: only images as lists are rounded; base64 uint8 is of bytes")
        if self.image in ("base64 uint8", "base64 png") and self.range is not None:
            raise UserError(f"range: {self.image} is from 0 to 255")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise UserError("classes: a name is there twice")
        if (self.name is None) != (self.score is None):
            raise UserError("name and score belong together: give both or none")
        for name in ("answers", "version"):
            if getattr(self, name) is not None:
                parse_path(getattr(self, name), name)
        if self.answers.count("[*]") > (0 if self.single else 1) or "[*]" in (self.version or ""):
            raise UserError("a path has [*] once at most: in answers, for the images of a request")

    def request(self, images: Any, bounds: tuple[float, float]) -> bytes:
        """Return the body for images (n, c, h, w) in their bounds."""
        parts = [self._shown(image, bounds) for image in images]
        if self.single:
            return json.dumps(_filled(self.body, "$image", parts[0])).encode()
        items = [_filled(self.item, "$image", part) for part in parts]
        return json.dumps(_filled(self.body, "$images", items)).encode()

    def _shown(self, image: Any, bounds: tuple[float, float]) -> Any:
        low, high = bounds
        to = (0.0, 255.0) if self.image in ("base64 uint8", "base64 png") else self.range
        if to is not None:
            image = to[0] + (image - low) * ((to[1] - to[0]) / (high - low))
        if self.layout == "nhwc" or self.image == "base64 png":
            image = image.transpose(1, 2, 0)
        if self.image == "list":
            return (np.rint(image).astype(int) if self.whole else image.astype(np.float32)).tolist()
        if self.image == "base64 float32":
            return base64.b64encode(np.ascontiguousarray(image, "<f4").tobytes()).decode()
        pixels = np.ascontiguousarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
        if self.image == "base64 uint8":
            return base64.b64encode(pixels.tobytes()).decode()
        file = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
            file, "png", compress_level=1
        )
        return base64.b64encode(file.getvalue()).decode()

    def read(self, reply: Any, images: int, *, labels: bool) -> list[Any]:
        """Return a row of numbers, or a label, for each of so many images. Raises TargetError."""
        steps = parse_path(self.answers, "answers")
        if self.single:
            return [self._row(follow(reply, steps, self.answers), labels)]
        at = steps.index("*") if "*" in steps else len(steps)
        found = follow(reply, steps[:at], self.answers)
        if not isinstance(found, list) or len(found) != images:
            count = f"{len(found)} answers" if isinstance(found, list) else "no list of answers"
            raise TargetError(f"the service gave {count} for {images} images, at '{self.answers}'")
        return [self._row(follow(one, steps[at + 1 :], self.answers), labels) for one in found]

    def _row(self, value: Any, labels: bool) -> Any:
        if isinstance(value, list) and self.name is not None:
            value = self._scores(value)
        if isinstance(value, dict):
            value = self._by_class(value)
        if not labels or isinstance(value, list):
            return value
        if isinstance(value, str):
            known = self.classes or []
            if value not in known:
                what = "which is not a known class" if known else "and the template has no classes"
                raise TargetError(f"the service gave the label '{plain(value, 40)}', {what}")
            return known.index(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TargetError(f"the service gave no label but {plain(repr(value), 40)}")
        return value

    def _scores(self, value: list[Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for entry in value:
            if not isinstance(entry, dict) or not {self.name, self.score} <= entry.keys():
                raise TargetError(f"the service gave a class without '{self.name}' and '{self.score}'")
            name = str(entry[self.name])
            if name in found:
                raise TargetError(f"the service gave the class '{plain(name, 40)}' twice")
            found[name] = entry[self.score]
        return found

    def _by_class(self, scores: dict[str, Any]) -> list[Any]:
        if self.classes is None:
            raise TargetError("the service gave classes by name: the template has no classes")
        strange = [name for name in scores if name not in self.classes]
        absent = [name for name in self.classes if name not in scores]
        if strange:
            raise TargetError(f"the service gave the class '{plain(strange[0], 40)}', which is not known")
        if absent:
            raise TargetError(f"the service left out the class '{absent[0]}' (and {len(absent) - 1} more)")
        return [scores[name] for name in self.classes]


def read_template(path: str) -> Template:
    """Read a template from a TOML or JSON file. Raises UserError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--template {path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--template {path} holds no table")
    known = [f.name for f in fields(Template) if f.name != "sha256"]
    for name in values:
        if name not in known:
            raise UserError(f"--template {path}: {unknown('entry', name, known)}")
    missing = [name for name in ("body", "answers") if name not in values]
    if missing:
        raise UserError(f"--template {path} lacks {' and '.join(missing)}")
    try:
        _typed(values)
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        if "range" in values:
            values["range"] = tuple(float(end) for end in values["range"])
        if "shape" in values:
            values["shape"] = tuple(values["shape"])
        return Template(**values, sha256=digest)
    except UserError as error:
        raise UserError(f"--template {path}: {error}") from None


def _typed(values: Mapping[str, Any]) -> None:
    """Raise UserError for an entry of another kind than a template's."""
    texts = ("answers", "image", "layout", "name", "score", "version")
    for name in texts:
        if name in values and not isinstance(values[name], str):
            raise UserError(f"{name}: give a text")
    for name, kind in (("classes", str), ("range", (int, float)), ("shape", int)):
        if name in values and not (
            isinstance(values[name], list) and all(isinstance(v, kind) for v in values[name])
        ):
            raise UserError(f"{name}: give a list of {'texts' if kind is str else 'numbers'}")
    if values.get("image", "list") not in get_args(Form):
        raise unknown("image", str(values["image"]), get_args(Form))
    if values.get("layout", "nchw") not in ("nchw", "nhwc"):
        raise UserError(f"layout {values['layout']}: nchw or nhwc")
    if not isinstance(values.get("whole", False), bool):
        raise UserError("whole: give true or false")
    if not isinstance(values.get("decimals", 0), int) or not 0 <= values.get("decimals", 0) < 20:
        raise UserError("decimals: give a number of places")
    if "range" in values and (len(values["range"]) != 2 or values["range"][0] >= values["range"][1]):
        raise UserError("range: give two numbers, the lower first")
    if "shape" in values and len(values["shape"]) != 3:
        raise UserError("shape: give channels, height and width")


def parse_path(path: str, what: str) -> list[Step]:
    """Return the steps of a path: keys after dots, [3] and [*] for lists. Raises UserError."""
    steps: list[Step] = []
    at = 0
    while at < len(path):
        found = _STEP.match(path, at)
        if found is None or (path[at] == "." and at == 0):
            raise UserError(f"{what} = '{path}' is no path: write keys with dots, as in result.scores[0]")
        key, index = found.groups()
        steps.append(key if index is None else "*" if index == "*" else int(index))
        at = found.end()
    return steps


def follow(value: Any, steps: Sequence[Step], path: str) -> Any:
    """Return what lies at the end of a path. Raises TargetError."""
    for step in steps:
        listed = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if not listed and not (isinstance(value, dict) and step in value):
            has = ", ".join(list(value)[:5]) if isinstance(value, dict) else type(value).__name__
            raise TargetError(f"the answer has nothing at '{path}': no '{step}' but {plain(has, 80)}")
        value = value[step]
    return value


def _holds(value: Any, mark: str) -> bool:
    if isinstance(value, dict):
        return any(_holds(part, mark) for part in value.values())
    if isinstance(value, list):
        return any(_holds(part, mark) for part in value)
    return bool(value == mark)


def _filled(value: Any, mark: str, what: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(part, mark, what) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, mark, what) for part in value]
    return what if value == mark else value
