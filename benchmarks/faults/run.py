"""Kill tool and server by turns during one extraction, and compare with a run that nothing disturbs."""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import summary

from fault_server import Faulty

ROOT = Path(__file__).parent
SHAPE, CLASSES = (1, 8, 8), 4
REQUEST, CONCURRENCY = 8, 4  # images of a request, requests in flight
FAULTS = [{"status": 503}, {"reset": "before"}, {"reset": "after"}, {"cut": 40}]
RECIPE = ["--batch", "32", "--width", "8", "--noise-size", "16"]
SERVICE = ["--request-batch", str(REQUEST), "--concurrency", str(CONCURRENCY), "--pause", "0.05"]
TOOL = [sys.executable, "-m", "dualstudent"]
MOST = 120.0  # seconds without progress after which something is wrong


class Extraction:
    """One run of the tool after another, on the same run folder."""

    def __init__(self, out: Path, url: str, queries: int) -> None:
        self.out, self.process = out, None
        words = ["extract", "dual-student", "--target", url, "--queries", str(queries), "--out", str(out)]
        plain = [
            "--data",
            "none",
            "--points",
            "4",
            "--threads",
            "1",
            "--snapshot-every",
            "0.5",
            "--probe-every",
            "0",
        ]
        self.first = [*TOOL, *words, *plain, *RECIPE, *SERVICE]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin the run, or take it up again."""
        begun = (self.out / "snapshot.pt").exists()
        command = [*TOOL, "resume", str(self.out)] if begun else [*self.first, "--overwrite"]
        # to a file: a pipe that nobody reads would stop the tool
        with (self.out.parent / f"{self.out.name}.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, text=True)

    def running(self) -> bool:
        """Return whether it is at work."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> None:
        """Wait for its end."""
        while self.process is None or self.process.wait() != 0:
            if self.process is not None and self.process.returncode > 0:
                raise SystemExit(f"the tool failed, see {self.out}.log")
            self.start()


class Answered:
    """How many images the server has answered, in all its lives."""

    def __init__(self, log: Path) -> None:
        self.log, self.read, self.images = log, 0, 0

    def __call__(self) -> int:
        with self.log.open("rb") as file:
            file.seek(self.read)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self.read += len(whole) + 1
            self.images += sum(json.loads(line)["images"] for line in whole.splitlines())
        return self.images


def journalled(run: Path) -> dict[tuple[str, int], tuple[float, bytes]]:
    """Return when each answer came and what it is, from a copy of the journal: the file is left as it is."""
    with tempfile.TemporaryDirectory() as place:
        for name in ("journal.sqlite", "journal.sqlite-wal"):
            if (run / name).exists():
                shutil.copyfile(run / name, Path(place) / name)
        file = sqlite3.connect(Path(place) / "journal.sqlite")
        try:
            rows = file.execute("SELECT purpose, position, time, answer FROM answers").fetchall()
        except sqlite3.OperationalError:  # killed before there was one
            rows = []
        finally:
            file.close()
    return {(purpose, position): (when, answer) for purpose, position, when, answer in rows}


def outcome(run: Path) -> str:
    """Return a digest of what must be equal: the students, and the result but for time and bill."""
    result = json.loads((run / "result.json").read_text())
    for apart in ("timing", "bill"):
        result.pop(apart)
    weights = (run / "student" / "model.safetensors").read_bytes()
    return hashlib.sha256(weights + json.dumps(result, sort_keys=True).encode()).hexdigest()


def disturbed(
    run: Extraction, server: Faulty, log: Path, points: list[int], dice: random.Random
) -> dict[str, Any]:
    """Kill tool and server by turns when the server has answered so many images; return what was seen."""
    answered, kills = Answered(log), {"tool": 0, "server": 0}
    seen: dict[tuple[str, int], tuple[float, bytes]] = {}
    lost = 0
    for turn, point in enumerate(points):
        if not run.running():
            run.start()
        before, began = answered(), time.monotonic()
        while answered() < max(point, before + 1):
            if not run.running() and run.process is not None and run.process.returncode != 0:
                raise SystemExit(f"the tool failed, see {run.out}.log")
            if not run.running() or time.monotonic() - began > MOST:
                raise SystemExit(f"no progress to {point} images after {kills}: see {run.out}.log")
            time.sleep(0.002)
        if turn % 2:
            server.kill()
            time.sleep(dice.uniform(0, 0.3))
            server.script["share"]["seed"] += 1  # its next life has other faults
            server.start()
            kills["server"] += 1
            continue
        run.kill()
        kills["tool"] += 1
        now = journalled(run.out)
        lost += sum(now.get(key) != row for key, row in seen.items())
        seen = now
    run.finish()
    now = journalled(run.out)
    lost += sum(now.get(key) != row for key, row in seen.items())
    return {"kills": sum(kills.values()), "killed": kills, "answered": answered(), "lost": lost}


def main() -> None:
    """Do both runs and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--queries", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=ROOT / "results.json")
    words = parser.parse_args()
    dice, start = random.Random(words.seed), time.monotonic()
    points = sorted(dice.sample(range(1, words.queries - 200), words.kills))
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    model = {"shape": SHAPE, "classes": CLASSES}
    with Faulty(model=model) as server:
        quiet = Extraction(place / "quiet", server.url, words.queries)
        quiet.finish()
    log = place / "server.log"
    log.touch()
    share = {"of": 0.05, "seed": words.seed, "faults": FAULTS}
    with Faulty(model=model, delay=0.05, log=str(log), share=share) as server:
        run = Extraction(place / "run", server.url, words.queries)
        found = disturbed(run, server, log, points, dice)
    verified = subprocess.run([*TOOL, "journal", "verify", str(run.out)], capture_output=True).returncode
    bill = json.loads((run.out / "result.json").read_text())["bill"]
    figures = {
        "n": 1,
        "seed": words.seed,
        "queries": words.queries,
        **found,
        "asked": bill["asked"],
        "asked_again": bill["asked_again"],
        "in_vain": found["answered"] - words.queries,
        "most_in_flight": REQUEST * CONCURRENCY,
        "failed": bill["failed"],
        "failing_requests": share["of"],
        "from_journal": bill["from_journal"],
        "statuses": bill["statuses"],
        "journal_whole": verified == 0,
        "hash_equal": outcome(run.out) == outcome(quiet.out),
        "seconds": round(time.monotonic() - start, 1),
    }
    summary.write(words.out, " ".join(["benchmarks/faults/command.sh", *sys.argv[1:]]), figures)
    shutil.rmtree(place)
    if not (figures["hash_equal"] and figures["lost"] == 0 and figures["journal_whole"]):
        raise SystemExit("the claim does not hold")


if __name__ == "__main__":
    main()
