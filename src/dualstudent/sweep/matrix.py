"""The file that describes a sweep, and the cells that it stands for."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from dualstudent.data import SPLITS
from dualstudent.errors import UserError, unknown
from dualstudent.methods import Method, find
from dualstudent.networks import ARCHITECTURES
from dualstudent.numerics import Precision
from dualstudent.spec import Access, Labels, parse_count
from dualstudent.targets import TargetOptions, Training

_WHICH = ("labels", "seeds", "budgets")  # of the whole sweep, or of one method
_TOP = ("name", "out", *_WHICH, "threads", "points", "precision", "data_dir", "targets", "methods")
_TARGET = ("name", "path", "target", "data", "arch", "seed", "epochs", "training", "options", "split")
_METHOD = ("name", "method", "preset", "options", "start", "precision", "targets", *_WHICH)
KINDS = ("onnx", "torch", "python", "http", "https")  # a sweep has no tokens, nor templates
T = TypeVar("T")


@dataclass(frozen=True)
class Goal:
    """A target of a sweep: a folder, what is trained once into the sweep's own, or one elsewhere."""

    name: str
    path: str  # a folder, or a reference as `open_target` takes it
    train: dict[str, Any] | None = None  # data, arch, seed, training
    options: dict[str, Any] | None = None  # fields of TargetOptions
    split: str = "test"  # of its data, on which the clones are judged
    data: str | None = None  # those of a target elsewhere


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: plain values, as a worker gets them."""

    target: Goal
    row: str  # the method's name in the tables
    method: str
    preset: str
    recipe: dict[str, Any]  # every field of the method
    labels: Labels
    seed: int
    budget: int
    path: str
    threads: int
    points: int
    data_dir: str | None
    precision: Precision = "auto"
    start: str | None = None  # folder of the run that it goes on from

    @property
    def name(self) -> str:
        """What a message calls it."""
        return f"{self.target.name}/{self.row}/{self.labels}/{self.budget}/seed{self.seed}"

    @property
    def possible(self) -> bool:
        """Whether the method can work with these labels."""
        return self.labels == "soft" or find(self.method).needs == Access.LABEL

    def build(self) -> Method[Any]:
        """Return the method. Raises UserError."""
        return find(self.method)(**_tuples(self.recipe))

    def seen_as(self) -> TargetOptions | None:
        """Return what is known of the target."""
        return None if self.target.options is None else TargetOptions(**_tuples(self.target.options))


@dataclass(frozen=True)
class Sweep:
    """A sweep: where it is written, its targets, and its cells in order."""

    name: str
    out: Path
    goals: tuple[Goal, ...]
    cells: tuple[Cell, ...]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's TOML file. Raises UserError on anything in it that is not known or does not fit."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML: {error}") from error
    try:
        return _sweep(path, values)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def cells(sweep: Sweep) -> dict[str, Cell]:
    """Return the cells by name."""
    return {cell.name: cell for cell in sweep.cells}


def _sweep(path: Path, values: dict[str, Any]) -> Sweep:
    _known("key", values, _TOP)
    out = (path.parent / _one(values, "out", str, f"runs/sweeps/{path.stem}")).resolve()
    goals = [_goal(path, out, entry) for entry in _tables(values, "targets")]
    double = next((g.name for g in goals if sum(g.name == other.name for other in goals) > 1), None)
    if double is not None:
        raise UserError(f"the target {double} is there twice: give one another name")
    found: list[Cell] = []
    for entry in _tables(values, "methods"):
        _known("key of a method", entry, _METHOD)
        name = _one(entry, "method", str)
        kind = find(name)
        row = _folder_name(_one(entry, "name", str, name))
        preset = _one(entry, "preset", str, next(iter(kind.presets)))
        options, base = _one(entry, "options", dict, {}), _one(entry, "start", str, "")
        mine = _chosen(goals, entry)
        which = {**{key: values[key] for key in (*_WHICH, "precision") if key in values}, **entry}
        for goal, labels, budget, seed in product(
            mine, _labels(which), [_budget(b) for b in _list(which, "budgets")], _list(which, "seeds", [0])
        ):
            if not isinstance(seed, int) or isinstance(seed, bool):
                raise UserError(f"seeds: {seed!r} is no whole number")
            place = out / "runs" / goal.name / row / labels / str(budget) / f"seed{seed}"
            start = _start(found, base, goal, labels, seed) if base else None
            recipe = _recipe(kind, preset, options if start is None else {**options, "start": start})
            found.append(
                Cell(
                    goal,
                    row,
                    name,
                    preset,
                    recipe,
                    labels,
                    seed,
                    budget,
                    str(place),
                    _positive(values, "threads", 1),
                    _positive(values, "points", 20),
                    _data_dir(path, values),
                    _precision(which),
                    start,
                )
            )
    names = [cell.name for cell in found]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UserError(f"{double} is there twice: give its method or target another name")
    return Sweep(_one(values, "name", str, path.stem), out, tuple(goals), tuple(found))


def _goal(path: Path, out: Path, entry: dict[str, Any]) -> Goal:
    _known("key of a target", entry, _TARGET)
    options = _one(entry, "options", dict) if "options" in entry else None
    split = _one(entry, "split", str, "test")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if options is not None:
        _changed("option of a target", TargetOptions(), options)
    if "target" in entry:
        return _elsewhere(path, entry, options, split)
    if "path" in entry:
        for key in ("data", "arch", "seed", "epochs", "training"):
            if key in entry:
                raise UserError(f"a target has a path, or {key} with which it is trained: not both")
        place = path.parent / _one(entry, "path", str)
        name = _folder_name(_one(entry, "name", str, place.name))
        return Goal(name, str(place.resolve()), None, options, split)
    data, arch = _one(entry, "data", str), _one(entry, "arch", str)
    if ":" not in arch and arch not in ARCHITECTURES:
        raise unknown("architecture", arch, ARCHITECTURES)
    name = _folder_name(_one(entry, "name", str, f"{Path(data).name}-{arch}"))
    given = {key: entry[key] for key in ("epochs",) if key in entry} | _one(entry, "training", dict, {})
    training = asdict(_changed("training option", Training(), given))
    train = {"data": data, "arch": arch, "seed": _one(entry, "seed", int, 0), "training": training}
    return Goal(name, str(out / "targets" / name), train, options, split)


def _elsewhere(path: Path, entry: dict[str, Any], options: dict[str, Any] | None, split: str) -> Goal:
    """Return a target that no sweep trains: a model's file, a factory, a service. Raises UserError."""
    reference = _one(entry, "target", str)
    for key in ("path", "arch", "seed", "epochs", "training"):
        if key in entry:
            raise UserError(f"target = '{reference}' is not trained, nor in a folder: leave {key} out")
    kind, _, rest = reference.partition(":")
    if not rest:
        raise UserError(
            f"target = '{reference}': onnx:FILE, torch:…, python:… or an address (a folder: path = …)"
        )
    if kind not in KINDS:
        raise unknown("kind of target", kind, KINDS)
    if kind == "onnx":
        reference = f"onnx:{(path.parent / rest).resolve()}"
    name, data = _folder_name(_one(entry, "name", str)), _one(entry, "data", str)
    return Goal(name, reference, None, options, split, data)


def _start(found: list[Cell], row: str, goal: Goal, labels: str, seed: int) -> str:
    """Return the folder of the run that a cell goes on from: of that row, for the same target, labels and
    seed. Raises UserError where there is none, or several.
    """
    cells = [c for c in found if (c.row, c.target, c.labels, c.seed) == (row, goal, labels, seed)]
    if len(cells) != 1:
        what = "no run" if not cells else f"{len(cells)} runs (budgets)"
        which = f"on {goal.name}, {labels}, seed {seed}"
        raise UserError(f"start = '{row}': {what} of that method {which}, further up in the file")
    if not cells[0].possible:
        raise UserError(f"start = '{row}': that method cannot work with {labels} labels: give labels = [...]")
    return cells[0].path


def _chosen(goals: list[Goal], entry: Mapping[str, Any]) -> list[Goal]:
    names = {goal.name: goal for goal in goals}
    chosen = _list(entry, "targets", list(names))
    for name in chosen:
        if not isinstance(name, str) or name not in names:
            raise unknown("target", str(name), names)
    return [names[name] for name in chosen]


def _recipe(kind: type[Method[Any]], preset: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return every field of a method's preset with options changed. Raises UserError."""
    changed = _changed(f"option of {kind.name}", kind.preset(preset), options)
    plain: dict[str, Any] = json.loads(json.dumps(asdict(changed)))
    return plain


def _changed(what: str, recipe: T, options: Mapping[str, Any]) -> T:
    """Return a dataclass with some fields changed. Raises UserError for an unknown or unfit one."""
    known = [field.name for field in fields(recipe)]  # type: ignore[arg-type]
    hints = get_type_hints(type(recipe))
    values: dict[str, Any] = {}
    for key, value in options.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown(what, key, known)
        if not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]).replace("typing.", ""))
            raise UserError(f"option {key} = {value!r}: a {wanted} is wanted")
        values[name] = value
    return replace(recipe, **_tuples(values))  # type: ignore[type-var]


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value read from TOML is of a field's type."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_fits(part, get_args(kind)[0]) for part in value)
    if get_args(kind):  # a union
        return any(_fits(value, one) for one in get_args(kind))
    return type(value) is kind or (kind is float and type(value) is int)


def _tuples(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in recipe.items()}


def _labels(which: Mapping[str, Any]) -> list[Labels]:
    found = _list(which, "labels", ["soft"])
    for label in found:
        if label not in get_args(Labels):
            raise unknown("labels", str(label), get_args(Labels))
    return found


def _precision(which: Mapping[str, Any]) -> Precision:
    found: Precision = _one(which, "precision", str, "auto")
    if found not in get_args(Precision):
        raise unknown("precision", found, get_args(Precision))
    return found


def _budget(value: object) -> int:
    return parse_count(str(value))


def _data_dir(path: Path, values: Mapping[str, Any]) -> str | None:
    given = _one(values, "data_dir", str, "")
    return str((path.parent / given).absolute()) if given else None


def _known(what: str, values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in values:
        if name not in names:
            raise unknown(what, name, names)


def _tables(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = values.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"one [[{name}]] or more is needed")
    return found


def _list(values: Mapping[str, Any], name: str, default: list[Any] | None = None) -> list[Any]:
    found = values.get(name, default)
    if not isinstance(found, list) or not found:
        raise UserError(f"{name}: a list is needed, {name} = [...]")
    return found


def _positive(values: Mapping[str, Any], name: str, default: int) -> int:
    found: int = _one(values, name, int, default)
    if isinstance(found, bool) or found < 1:
        raise UserError(f"{name} = {found!r}: a whole number of at least 1 is wanted")
    return found


def _folder_name(name: str) -> str:
    """Return a name that is a folder's too. Raises UserError."""
    if not name.strip(". ") or "/" in name or "\\" in name:
        raise UserError(f"name = {name!r}: it is a folder's name too: no slashes, not empty")
    return name


def _one(values: Mapping[str, Any], name: str, kind: type, default: Any = MISSING) -> Any:
    found = values.get(name, default)
    if found is MISSING:
        raise UserError(f"{name} is missing")
    if not isinstance(found, kind):
        raise UserError(f"{name} = {found!r}: a {kind.__name__} is wanted")
    return found
