"""Time what the demo did before the engine was made fast, by the code of then and by that of now, in turns.

Then it trained the digits target and copied it with 50,000 queries by Dual Student's preset `small`, from
probabilities and from labels, side by side. Writes before.json.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from summary import ROOT, read, spread, write

THEN = "c1b6692"  # the last commit before the engine's first
PAIRS = 3
COPY = "extract dual-student --preset small --queries 50k --seed 0 --device cpu".split()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        then, place = Path(folder) / "then", Path(folder) / "runs"
        then.mkdir()
        packed = subprocess.run(["git", "archive", THEN, "src"], cwd=ROOT, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(then)], check=True, input=packed.stdout)
        times: dict[str, list[float]] = {"then": [], "now": []}
        agreement: dict[str, dict[str, float]] = {}
        for pair in range(PAIRS):
            for name, source in (("then", then / "src"), ("now", ROOT / "src")):
                out = place / f"{name}{pair}"
                times[name].append(timed(source, out, [] if name == "then" else ["--threads", "1"]))
                agreement[name] = {of: read(out / of / "result.json")["agreement"] for of in ("soft", "hard")}
    ratios = [then / now for then, now in zip(*times.values(), strict=True)]
    figures = {name: {"seconds": spread(values), **agreement[name]} for name, values in times.items()}
    ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    write(Path(__file__).parent / "before.json", "benchmarks/demo/before.py", {**figures, "ratio": ratio})


def timed(source: Path, out: Path, more: list[str]) -> float:
    """Return the seconds that the target, its two copies and their report take, two processes at a time."""
    start = time.perf_counter()
    ended(run(source, ["target", "train", "digits", "--arch", "digits-cnn", "--out", str(out / "target")]))
    copies = [
        run(source, [*COPY, *more, "--target", str(out / "target"), "--labels", of, "--out", str(out / of)])
        for of in ("soft", "hard")
    ]
    for copy in copies:
        ended(copy)
    runs = [str(out / of) for of in ("soft", "hard")]
    ended(run(source, ["report", *runs, "--out", str(out / "report.html")]))
    return time.perf_counter() - start


def run(source: Path, words: list[str]) -> "subprocess.Popen[bytes]":
    surroundings = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dualstudent", *words]
    return subprocess.Popen(command, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(process: "subprocess.Popen[bytes]") -> None:
    said = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"{process.args}: {said}")


if __name__ == "__main__":
    main()
