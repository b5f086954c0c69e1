"""Reading what a service sent: nothing is believed that is not what was agreed on."""

import contextlib
import itertools
import json
import re
from collections import Counter
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from dualstudent.errors import TargetError

SHORT = 200  # characters of a service's words that an error repeats
DEEP = 8  # dimensions of an answer, at most


def read_json(body: bytes, what: str, kind: str = "") -> Any:
    """Return the value of a JSON text without duplicate keys, NaN or deep nesting. Raises TargetError."""
    if "html" in kind.lower() or body[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise TargetError(
            f"{what} is an HTML page{_title(body)}, not JSON:"
            " a login page, or another address than the model's?"
        )
    try:
        return json.loads(body.decode(), object_pairs_hook=_pairs, parse_constant=_constant)
    except _Refused as error:
        raise TargetError(f"{what} {error}") from None
    except RecursionError:
        raise TargetError(f"{what} is JSON nested too deeply") from None
    except MemoryError:
        raise TargetError(f"{what} does not fit into memory") from None
    except ValueError as error:  # no UTF-8, no JSON, a number of thousands of digits
        raise TargetError(
            f"{what} is not JSON ({plain(str(error), 80)}): {plain(body[:400], 80)!r}"
        ) from None


class _Refused(ValueError):
    """JSON that Python would take and we do not."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise _Refused(f"has the key '{plain(twice, 40)}' twice")
    return found


def _constant(name: str) -> Any:
    raise _Refused(f"holds {name}: NaN or infinite values")


def read_object(body: bytes, what: str, kind: str = "") -> dict[str, Any]:
    """Return a JSON object. Raises TargetError."""
    value = read_json(body, what, kind)
    if not isinstance(value, dict):
        raise TargetError(f"{what} is no JSON object but a {type(value).__name__}")
    return value


def numbers(value: Any, what: str) -> npt.NDArray[Any]:
    """Return nested lists of numbers as an array of 64-bit floats or integers. Raises TargetError.

    Each is looked at before numpy is: it makes strings of numbers beside a string, as long as that.
    """
    level, shape = [value], list[int]()
    while (kinds := set(map(type, level))) == {list}:
        sizes = set(map(len, level))
        if len(sizes) > 1:
            raise TargetError(f"{what} are lists of different lengths")
        shape += sizes
        if len(shape) > DEEP:
            raise TargetError(f"{what} are lists in lists in more than {DEEP} levels")
        level = list(itertools.chain.from_iterable(level))
    if list in kinds:
        raise TargetError(f"{what} are lists of different lengths")
    array = np.asarray(level, None if kinds else float) if kinds <= {int, float} else None
    if array is None or array.dtype.kind not in "fiu":  # objects: integers of more than 64 bits
        raise TargetError(f"{what} are no numbers")
    return array.reshape(shape)


def plain(text: str | bytes, limit: int = SHORT) -> str:
    """Return a stranger's words in one short line without control characters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * limit]).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def message(body: bytes) -> str:
    """Return what a service says about a refusal, shortened and cleaned."""
    try:
        value = json.loads(body[:65536].decode())
        for name in ("error", "message", "detail"):
            if isinstance(value, dict) and value.get(name):
                inner = value[name]
                inner = inner.get("message", inner) if isinstance(inner, dict) else inner
                return plain(inner if isinstance(inner, str) else json.dumps(inner))
    except (ValueError, RecursionError):
        pass
    if body[:64].lstrip().lower().startswith(b"<"):
        return f"an HTML page{_title(body)}"
    return plain(body[:4096])


def _title(body: bytes) -> str:
    found = re.search(rb"<title[^>]*>([^<]{1,200})", body[:8192], re.IGNORECASE)
    return f" ('{plain(found[1], 60)}')" if found else ""


def retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for: a number, or a date; 0 for anything else."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return min(1e9, float(value))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        when = parsedate_to_datetime(value)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    return 0.0


def unrounded(rows: npt.NDArray[Any], most: float) -> npt.NDArray[Any]:
    """Return rows (n, k) on the simplex again, whose sum rounding has put off by `most` at most."""
    total = rows.sum(1, keepdims=True)
    near = (np.abs(total - 1) <= most) & (total > 0)
    return np.asarray(rows / np.where(near, total, 1), rows.dtype)
