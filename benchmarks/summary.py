"""results.json of a claim: n, mean, deviation, hardware, versions."""

import json
import os
import statistics
from pathlib import Path
from typing import Any

from dualstudent.experiment import versions


def spread(values: list[float]) -> dict[str, Any]:
    """Return n, mean, median, sample deviation and the values themselves."""
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def write(path: Path, command: str, figures: dict[str, Any]) -> None:
    """Write results.json and print it."""
    machine = {"cores": os.cpu_count(), **versions()}
    text = json.dumps({"schema_version": 1, "command": command, "machine": machine, **figures}, indent=2)
    path.write_text(text + "\n")
    print(text)


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    return dict(json.loads(path.read_text()))
