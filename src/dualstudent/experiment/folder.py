"""One run, one directory: what lies where, and what must never be overwritten."""

import functools
import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout

from dualstudent import parallel
from dualstudent.data import Images
from dualstudent.errors import Stopped, UserError
from dualstudent.files import closed, read_json, write_json
from dualstudent.ledger import Account
from dualstudent.methods import Method
from dualstudent.spec import Spec

SCHEMA_VERSION = 1
NEEDED = (
    *("method", "recipe", "preset", "labels", "seed", "budgets", "target", "data", "data_free", "device"),
    *("threads", "points", "snapshot_every", "tensorboard", "data_dir"),
)


NUMBER = (int, float)
KINDS: dict[str, tuple[type | None, ...]] = {
    **dict.fromkeys(("method", "labels", "device"), (str,)),
    **dict.fromkeys(("recipe", "target", "numerics"), (dict,)),
    **dict.fromkeys(("seed", "threads", "points", "ranks", "probe_every"), (int,)),
    "budgets": (list,),
    "data": (dict, None),
    "data_dir": (str, None),
    "tensorboard": (bool,),
    "snapshot_every": NUMBER,
    "data_free": (bool,),
}
MOST = 10**15  # no count of a run is larger
LOCK = "lock"  # the file that tells others to leave a run alone
P = ParamSpec("P")
T = TypeVar("T")
LEAST = {"threads": 1, "points": 1, "ranks": 1, "probe_every": 0, "snapshot_every": 0}


class RunFolder:
    """Paths of a run, and its manifest."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest_file = self.path / "manifest.json"
        self.result = self.path / "result.json"
        self.metrics = self.path / "metrics.jsonl"
        self.snapshot = self.path / "snapshot.pt"
        self.attack = self.path / "attack.account"
        self.audit = self.path / "audit.account"
        self.transfer = self.path / "transfer.account"
        self.shown = self.path / "shown.bin"
        self.journal = self.path / "journal.sqlite"
        self.service = self.path / "service.json"
        self.probes = self.path / "probes.json"
        self.timing = self.path / "timing.json"
        self.student = self.path / "student"
        self.start = self.path / "start"
        self.figures = self.path / "figures"
        self.answers = self.path / "answers"

    def charged(self) -> dict[str, int]:
        """Return the images charged so far, by account; nothing is written. Raises UserError."""
        paths = {"attack": self.attack, "audit": self.audit, "transfer": self.transfer}
        return {name: Account(name, path=path, writes=False).asked for name, path in paths.items()}

    def manifest(self) -> dict[str, Any]:
        """Return the manifest. Raises UserError where there is none that we can read."""
        if not self.manifest_file.is_file():
            raise UserError(f"{self.path} holds no run: there is no manifest.json in it")
        values = read_json(self.manifest_file)
        if values.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{self.manifest_file} has schema version {values.get('schema_version')},"
                f" this program reads {SCHEMA_VERSION}"
            )
        missing = [key for key in NEEDED if key not in values]
        if missing:
            raise UserError(f"{self.manifest_file} lacks {', '.join(missing)}: restore it from a copy")
        wrong = next((key for key in KINDS if key in values and not _plausible(key, values[key])), None)
        if wrong is not None:
            said = str(values[wrong])[:40]
            raise UserError(f"{self.manifest_file}: {wrong} cannot be {said!r}: restore it from a copy")
        closed(self.path)
        return values

    @contextmanager
    def believing(self) -> Iterator[None]:
        """Make a UserError of whatever values that no run writes lead to, where a manifest is acted on."""
        try:
            yield
        except (UserError, OSError):
            raise
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{self.manifest_file} holds what no run writes ({what}): restore it from a copy"
            ) from error

    def outcome(self) -> dict[str, Any]:
        """Return the result. Raises UserError where there is none that we can read."""
        if not self.result.is_file():
            raise UserError(f"{self.path} has no result.json yet: finish it with 'dualstudent resume' first")
        values = read_json(self.result)
        missing = [key for key in ("spent", "accuracy", "bill") if key not in values]
        if missing:
            raise UserError(f"{self.result} lacks {', '.join(missing)}: restore it from a copy")
        return values

    @contextmanager
    def begun(self, manifest: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Make the directory, write the manifest, and keep the run to this process; one in the way is kept
        unless told. What was made is removed where an error comes before anything is charged.

        Raises UserError.
        """
        _finite(manifest)
        vacant(self.path, overwrite)
        made = not self.path.is_dir()
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self.held(anyway=True))
                vacant(self.path, overwrite)  # another process may have been faster
                self._clear()
                write_json(self.manifest_file, manifest)  # first: what lies beside it is a run's
                for path in (self.figures, self.answers):
                    path.mkdir()
            except OSError as error:
                raise UserError(f"cannot make {self.path}: {error.strerror}") from error
            try:
                yield
            except Stopped:
                raise
            except Exception:
                if not any(path.exists() for path in (self.attack, self.audit)):
                    self._clear()
                    if made:
                        (self.path / LOCK).unlink(missing_ok=True)
                        with suppress(OSError):
                            self.path.rmdir()
                raise

    @contextmanager
    def held(self, *, anyway: bool = False) -> Iterator[None]:
        """Keep a run, if there is one (or `anyway`), to this process. Raises UserError if another has it."""
        if not anyway and not self.manifest_file.is_file():
            yield
            return
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path} is in use: another process is working on this run; wait for it, or stop it"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write {self.path / LOCK}: {error.strerror}") from error
        try:
            yield
        finally:
            with suppress(OSError):
                (self.path / LOCK).unlink(missing_ok=True)  # who has opened it already sees that it is gone
            lock.release()

    def _clear(self) -> None:
        """Remove what lies in the directory; not itself, which others may be looking at, nor the lock."""
        for path in self.path.iterdir():
            if path.name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def alone(command: Callable[P, T]) -> Callable[P, T]:
    """Keep the run that a command's first argument, `path`, names to this process while the command lasts.

    It raises UserError where another process has it.
    """

    @functools.wraps(command)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        if parallel.rank():  # the first of several keeps it for all
            return command(*args, **kwargs)
        place: Any = args[0] if args else kwargs["path"]
        with RunFolder(place).held():
            return command(*args, **kwargs)

    return kept


def _finite(values: Any, name: str = "the manifest") -> None:
    """Raise UserError where an option of a run is no finite number: no manifest can hold it."""
    if isinstance(values, float) and not math.isfinite(values):
        raise UserError(f"--{name.replace('_', '-')} {values}: a finite number is needed")
    for key, value in values.items() if isinstance(values, dict) else ():
        _finite(value, key)
    for value in values if isinstance(values, list | tuple) else ():
        _finite(value, name)


def _plausible(key: str, value: Any) -> bool:
    """Return whether a manifest may hold a value: it comes from elsewhere, perhaps from a stranger."""
    kinds = KINDS[key]
    if value is None:
        return None in kinds
    if not any(isinstance(value, kind) for kind in kinds if kind is not None):
        return False
    if isinstance(value, bool):
        return bool in kinds
    if key == "budgets":
        counts = [b for b in value if isinstance(b, int) and not isinstance(b, bool) and 0 < b < MOST]
        return bool(value) and len(counts) == len(value)
    most = 4096 if key == "threads" else MOST
    return not isinstance(value, NUMBER) or LEAST.get(key, -MOST) <= value < most


def vacant(path: Path, overwrite: bool) -> None:
    """Raise UserError if a directory holds another run (without `overwrite`) or something else."""
    if not path.exists():
        parent = next(p for p in path.absolute().parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"cannot make {path}: {parent} cannot be written to")
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file: choose another --out")
    if all(inside.name == LOCK for inside in path.iterdir()):
        return
    if not (path / "manifest.json").is_file():
        raise UserError(f"{path} is not empty and holds no run: choose another --out")
    if not overwrite:
        raise UserError(f"{path} holds another run: choose another --out, resume it, or say --overwrite")


def describe_images(data: Images) -> dict[str, Any]:
    """Return what tells one set of images from another."""
    return {"name": data.name, "split": data.split, "images": len(data), "sha256": data.digest()}


def describe(
    method: Method[Any],
    *,
    preset: str | None,
    labels: str,
    seed: int,
    budgets: list[int],
    target: dict[str, Any],
    data: Images | None,
    device: str,
    options: dict[str, Any],
    command: list[str] | None,
) -> dict[str, Any]:
    """Return the manifest of a run: everything that makes it what it is."""
    outside = method.outside(Spec.from_json(target["spec"]))
    return {
        "schema_version": SCHEMA_VERSION,
        "method": method.name,
        "preset": _preset(method, preset),
        "recipe": asdict(method),
        "data_free": outside is None,
        "outside": None if outside is None else describe_images(outside),
        "procedural": method.procedural,
        "bounded": method.bounded,
        "labels": labels,
        "seed": seed,
        "budgets": budgets,
        "target": target,
        "data": None if data is None else describe_images(data),
        "device": device,
        **options,
        "versions": versions(),
        "command": command,
    }


def _preset(method: Method[Any], name: str | None) -> str | None:
    """Return the preset that a recipe is, or has been changed from."""
    if name is None:
        return next((known for known in method.presets if method == type(method).preset(known)), None)
    return name if method == type(method).preset(name) else f"{name}, changed"


def identity(manifest: dict[str, Any]) -> str:
    """Return a digest of what a snapshot must agree with: recipe, labels, seed and target."""
    parts = [manifest[key] for key in ("method", "recipe", "labels", "seed")]
    about = manifest["target"]
    parts += [about[key] for key in ("sha256", "weights", "spec") if key in about]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import numpy
    import torch

    return {
        "dualstudent": package_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(terse=True),
        "processor": _processor(),
    }


def package_version() -> str:
    """Return this package's version."""
    try:
        return version("dualstudent")
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
