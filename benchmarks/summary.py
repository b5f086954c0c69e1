"""results.json of a claim: n, mean, deviation, hardware, versions."""

import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

from dualstudent.experiment import versions

ROOT = Path(__file__).parent.parent


def spread(values: list[float]) -> dict[str, Any]:
    """Return n, mean, median, sample deviation and the values themselves."""
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def origin(command: str) -> dict[str, Any]:
    """Return by what command, of which commit and on what machine something is measured."""
    machine = {"cores": os.cpu_count(), "instructions": torch.backends.cpu.get_cpu_capability(), **versions()}
    return {"command": command, "commit": commit(), "machine": machine}


def commit() -> str | None:
    """Return the commit's short hash, with + where programs have changed since; None without git."""
    programs = ["src", "benchmarks/*.py", "benchmarks/*.sh", "benchmarks/*.toml"]
    try:
        known, changed = (
            subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--", *programs))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return known.strip() + "+" * bool(changed)


def write(path: Path, command: str, figures: dict[str, Any]) -> None:
    """Write results.json and print it."""
    text = json.dumps({"schema_version": 1, **origin(command), **figures}, indent=2)
    path.write_text(text + "\n")
    print(text)


def kept(path: Path, part: str, *more: str) -> dict[str, Any]:
    """Return what an earlier file has in a part, each entry with its own origin, and `more` of the file's."""
    known = read(path) if path.is_file() else {}
    about = {name: known.get(name) for name in ("command", "commit", "machine")}
    about |= {name: known[name] for name in more if name in known}
    return {name: {**about, **entry} for name, entry in known.get(part, {}).items()}


def put(text: str, name: str, writer: str, lines: list[str]) -> str:
    """Return a page with lines between the marks of a name that a script writes."""
    begin, end = (f"<!-- {edge} of {name} that {writer} writes -->" for edge in ("begin", "end"))
    before, after = text.split(begin)[0], text.split(end)[1]
    return before + begin + "\n\n" + "\n".join(lines) + "\n\n" + end + after


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    return dict(json.loads(path.read_text()))
