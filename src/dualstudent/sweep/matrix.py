"""The file that describes a sweep, and the cells that it stands for."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, get_args

from dualstudent.errors import UserError, unknown
from dualstudent.methods import Method, find
from dualstudent.spec import Access, Labels, parse_count

_WHICH = ("labels", "seeds", "budgets")  # of the whole sweep, or of one method
_TOP = ("name", "out", *_WHICH, "threads", "points", "data_dir", "targets", "methods")
_TARGET = ("name", "path", "data", "arch", "seed", "epochs")
_METHOD = ("name", "method", "preset", "options", "targets", *_WHICH)


@dataclass(frozen=True)
class Goal:
    """A target of a sweep: a folder, or what is trained once into the sweep's own."""

    name: str
    path: str
    train: dict[str, Any] | None = None  # data, arch, seed, epochs


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


@dataclass(frozen=True)
class Sweep:
    """A sweep: where it is written, and its cells in order."""

    name: str
    out: Path
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
    out = (path.parent / _one(values, "out", str, f"runs/sweeps/{path.stem}")).absolute()
    goals = [_goal(path, out, entry) for entry in _tables(values, "targets")]
    found: list[Cell] = []
    for entry in _tables(values, "methods"):
        _known("key of a method", entry, _METHOD)
        name = _one(entry, "method", str)
        kind = find(name)
        row, preset = _one(entry, "name", str, name), _one(entry, "preset", str, next(iter(kind.presets)))
        recipe = _recipe(kind, preset, _one(entry, "options", dict, {}))
        mine = _chosen(goals, entry)
        which = {**{key: values[key] for key in _WHICH if key in values}, **entry}
        for goal, labels, budget, seed in product(
            mine, _labels(which), [_budget(b) for b in _list(which, "budgets")], _list(which, "seeds", [0])
        ):
            if not isinstance(seed, int) or isinstance(seed, bool):
                raise UserError(f"seeds: {seed!r} is no whole number")
            place = out / "runs" / goal.name / row / labels / str(budget) / f"seed{seed}"
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
                    _one(values, "threads", int, 1),
                    _one(values, "points", int, 20),
                    _data_dir(path, values),
                )
            )
    names = [cell.name for cell in found]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UserError(f"{double} is there twice: give its method or target another name")
    return Sweep(_one(values, "name", str, path.stem), out, tuple(found))


def _goal(path: Path, out: Path, entry: dict[str, Any]) -> Goal:
    _known("key of a target", entry, _TARGET)
    if "path" in entry:
        place = path.parent / _one(entry, "path", str)
        return Goal(_one(entry, "name", str, place.name), str(place.absolute()))
    data, arch = _one(entry, "data", str), _one(entry, "arch", str)
    name = _one(entry, "name", str, f"{data}-{arch}")
    train = {"data": data, "arch": arch, "seed": _one(entry, "seed", int, 0)}
    return Goal(name, str(out / "targets" / name), train | {"epochs": entry.get("epochs")})


def _chosen(goals: list[Goal], entry: Mapping[str, Any]) -> list[Goal]:
    names = {goal.name: goal for goal in goals}
    for name in entry.get("targets", []):
        if name not in names:
            raise unknown("target", str(name), names)
    return [names[name] for name in entry.get("targets", names)]


def _recipe(kind: type[Method[Any]], preset: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return every field of a method's preset with options changed. Raises UserError."""
    known = {field.name: field for field in fields(kind)}
    recipe = asdict(kind.preset(preset))
    for key, value in options.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown(f"option of {kind.name}", key, known)
        default = known[name].default
        like = default if default is not MISSING else recipe[name]
        fits = type(value) is type(like) or (isinstance(like, float) and type(value) is int)
        fits = fits or (isinstance(like, tuple) and isinstance(value, list)) or like is None
        if not fits:
            raise UserError(f"option {key} = {value!r}: a {type(like).__name__} is wanted")
        recipe[name] = value
    plain: dict[str, Any] = json.loads(json.dumps(asdict(kind(**_tuples(recipe)))))
    return plain


def _tuples(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in recipe.items()}


def _labels(which: Mapping[str, Any]) -> list[Labels]:
    found = _list(which, "labels", ["soft"])
    for label in found:
        if label not in get_args(Labels):
            raise unknown("labels", str(label), get_args(Labels))
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


def _one(values: Mapping[str, Any], name: str, kind: type, default: Any = MISSING) -> Any:
    found = values.get(name, default)
    if found is MISSING:
        raise UserError(f"{name} is missing")
    if not isinstance(found, kind):
        raise UserError(f"{name} = {found!r}: a {kind.__name__} is wanted")
    return found
