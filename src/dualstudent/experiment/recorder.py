"""What a run writes down while it goes: metrics, curve, images, and how it is going."""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualstudent.data import Images
from dualstudent.engine import Moment
from dualstudent.errors import Diverged, UserError
from dualstudent.evaluation import Witness, before, bound, fidelity, logits
from dualstudent.experiment.folder import RunFolder
from dualstudent.files import read_json, write_json, write_text
from dualstudent.methods import Phase
from dualstudent.methods.monitor import COLLAPSE, RENEWED
from dualstudent.networks import Students
from dualstudent.numerics import AUTO, Numerics
from dualstudent.spec import Access, Spec

Progress = Callable[[int, dict[str, Any]], None]  # queries spent; the last evaluation, step and steps
log = logging.getLogger(__name__)
PICTURES = 12  # images of a strip
MANY = 500  # answers after which it is told that they are nearly all of one class


def evaluation_steps(phases: Sequence[Phase[Any]], points: int) -> set[int]:
    """Return the steps after which a run is evaluated: of those that ask even ones, and ever denser ones at
    the start; of learning after them, four.
    """
    ends = list(accumulate(phase.steps for phase in phases))
    asking = [s for end, p in zip(ends, phases, strict=True) if p.cost for s in range(end - p.steps, end)]
    count = len(asking)
    points = min(points, count)
    wanted = {max(1, round(count * i / points)) for i in range(1, points + 1)}
    wanted |= {max(1, count >> i) for i in range(8)}
    found = {asking[at - 1] + 1 for at in wanted} | {ends[-1]}
    for cost, group in groupby(zip(ends, phases, strict=True), key=lambda pair: bool(pair[1].cost)):
        *_, (end, _) = together = list(group)
        if not cost and end > asking[0]:
            found |= {end - sum(phase.steps for _, phase in together) * i // 4 for i in range(4)}
    return found


class Recorder:
    """Watches a run: logs each step, evaluates now and then, knows when it is asked to stop.

    Everything it writes is a function of the recipe, the seed and the target: wall times go to
    timing.json only.
    """

    def __init__(
        self,
        folder: RunFolder,
        spec: Spec,
        data: Images | None,
        answers: Tensor | None,
        revealed: Access,
        *,
        phases: Sequence[Phase[Any]],
        points: int = 20,
        numerics: Numerics = AUTO,
        progress: Progress = lambda spent, last: None,
        stop: Callable[[], bool] = lambda: False,
        board: Any = None,
    ) -> None:
        self.folder, self.spec, self.data, self.answers = folder, spec, data, answers
        self.revealed, self.numerics, self.progress, self.stop = revealed, numerics, progress, stop
        self.board = board
        self._lopsided = False
        self.last: dict[str, Any] = {}
        self._steps = evaluation_steps(phases, points)
        self._before: Students | None = None  # the students before a step that will be evaluated
        self._fresh: list[tuple[int, int, dict[str, Tensor]]] = []
        self._lines: list[str] = []
        self._clock = time.perf_counter()
        self._wall, self.sessions = _worked_before(folder.timing)

    def __call__(self, moment: Moment[Any]) -> bool:
        """Take note of a step; return whether to stop."""
        scalars = {name: value for name, value in moment.metrics.items() if value.ndim == 0}
        self._fresh.append((moment.step, moment.spent, scalars))
        if moment.step in self._steps:
            self._evaluate(moment)
        self._look_ahead(moment.step, moment.state)
        self.progress(moment.spent, {**self.last, "step": moment.step, "steps": moment.steps})
        return self.stop()

    def rewind(self, step: int, state: Any) -> None:
        """Drop what was written after a step, as a snapshot of that step wants. Raises UserError."""
        self._look_ahead(step, state)
        if step > 0 and not self.folder.metrics.exists():
            log.warning("%s is missing: the curve up to step %d is lost", self.folder.metrics, step)
        if step == 0 or not self.folder.metrics.exists():
            self.folder.metrics.unlink(missing_ok=True)
            return
        kept = [line for line, values in _lines(self.folder.metrics) if values["step"] <= step]
        write_text(self.folder.metrics, "".join(f"{line}\n" for line in kept))

    def flush(self) -> None:
        """Write down what is new since the last flush. Raises UserError."""
        self._write_steps()
        try:
            with self.folder.metrics.open("a") as file:
                file.write("".join(line + "\n" for line in self._lines))
        except OSError as error:
            raise UserError(f"cannot write {self.folder.metrics}: {error.strerror}") from error
        self._lines.clear()
        write_json(self.folder.timing, {"wall_s": self.wall, "sessions": self.sessions})

    @property
    def wall(self) -> float:
        """Seconds worked on this run, over all sessions."""
        return self._wall + time.perf_counter() - self._clock

    def _look_ahead(self, step: int, state: Any) -> None:
        """Keep the students as a witness where the next step will be evaluated."""
        self._before = before(state) if step + 1 in self._steps else None

    def _write_steps(self) -> None:
        for step, spent, scalars in self._fresh:
            values = {name: value.item() for name, value in scalars.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise Diverged(f"the run diverged: {name} is {value} at step {step}")
            if values.get("renewed"):
                told = "at %s queries a student %s: it got fresh weights"
                log.warning(told, f"{spent:,}", RENEWED)
            if values.get("commonest", 0) >= COLLAPSE and spent >= MANY and not self._lopsided:
                told = "at %s queries %.0f %% of all answers are of one class: the copy may know no other"
                log.warning(told, f"{spent:,}", 100 * values["commonest"])
                self._lopsided = True
            self._log({"event": "step", "step": step, "queries": spent, **values})
        self._fresh.clear()

    def _log(self, line: dict[str, Any]) -> None:
        self._lines.append(json.dumps(line))
        if self.board is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{line['event']}/{name}", value, line["queries"])

    def _evaluate(self, moment: Moment[Any]) -> None:
        self._write_steps()
        point: dict[str, Any] = {"accuracy": None, "agreement": None}
        if self.data is not None and self.answers is not None:
            figures = self.figures(moment.state)
            point = {name: figures[name] for name in point}
        witness = None
        if self._before is not None:
            ids = moment.state.clone.ids
            witness = Witness(self._before, moment.asked, ids, self.numerics)
        limits = bound(moment.metrics, self.spec, witness)
        if limits is not None:
            point |= {name: limits[name] for name in ("space", "gap", "error", "tightness", "faults")}
        if moment.asked:
            _save_strip(
                self.spec.decode(moment.asked[-1][0][:PICTURES]),
                self.folder.figures / f"asked-{moment.spent:09d}.png",
            )
        self.last = point
        self._log({"event": "evaluation", "step": moment.step, "queries": moment.spent, **point})

    def figures(self, state: Any) -> dict[str, Any]:
        """Return all figures of the present clone on the test images."""
        assert self.data is not None
        assert self.answers is not None
        clone = state.clone
        each = logits(clone, self.data, self.spec)
        if not torch.isfinite(each).all():
            raise Diverged("the run diverged: the clone's logits on the test images are not finite")
        return fidelity(each, self.answers, self.data, access=self.revealed, ids=clone.ids)


def read_curve(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the evaluations written so far, in order."""
    return [
        {name: value for name, value in values.items() if name not in ("event", "step")}
        for _, values in _lines(folder.metrics)
        if values["event"] == "evaluation"
    ]


def renewals(folder: RunFolder) -> int:
    """Return how often a student that saw nothing got fresh weights."""
    return int(sum(values.get("renewed", 0) for _, values in _lines(folder.metrics)))


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the whole lines of a metrics file and what they say. Raises UserError."""
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            found.append((line, {**values, "step": int(values["step"]), "event": str(values["event"])}))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is no record of a run: restore the file") from error
    return found


def _worked_before(path: Path) -> tuple[float, int]:
    """Return the seconds worked and the number of this session. Raises UserError."""
    try:
        values = read_json(path) if path.exists() else {}
        return float(values.get("wall_s", 0.0)), int(values.get("sessions", 0)) + 1
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds no times of a run: delete it, only times are lost") from error


@torch.no_grad()
def _save_strip(pixels: Tensor, path: Path) -> None:
    """Save images side by side, one pixel apart."""
    strip = torch.nn.functional.pad(pixels, (0, 1), value=1.0).permute(1, 2, 0, 3).flatten(2)[:, :, :-1]
    array = (strip * 255).round().byte().cpu().numpy()
    picture = array[0] if len(array) != 3 else np.moveaxis(array, 0, 2)
    Image.fromarray(picture).save(path)
