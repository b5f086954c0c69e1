"""A sweep's file, small enough to be run in a test (the fixture `write` writes it, changed), and an executor
that does its jobs at once (the fixture `at_once`).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualstudent.errors import UserError
from dualstudent.sweep.work import work

Write = Callable[..., Path]
SPEC = """
name = "a_test"
out = "out"
labels = ["soft", "hard"]
seeds = [0, 1]
budgets = [40, "0.06k"]
points = 2

[[targets]]
name = "digits"
path = "{target}"

[[methods]]
name = "narrow"
method = "dual-student"
preset = "small"
options = {{ batch = 8, width = 4, noise-size = 8, drops = [0.5] }}

[[methods]]
name = "one seed"
method = "dual-student"
options = {{ batch = 8, width = 4 }}
seeds = [5]
labels = ["soft"]
budgets = [40]
"""


class Job:
    """A job done at once, in this process; fails where it is told to."""

    def __init__(self, values: dict[str, Any], log: Path, fail: str) -> None:
        self.error: Exception | None = None
        self.path = values["path"]
        self.paths = type("Paths", (), {"stderr": log})
        self.polls = 0
        try:
            if fail and fail in values["path"]:
                raise UserError("the target is gone")
            work(values)
        except Exception as error:
            self.error = error

    def done(self) -> bool:
        self.polls += 1
        return self.polls > 2

    def result(self) -> None:
        if self.error is not None:
            raise self.error

    def cancel(self, check: bool) -> None:
        pass


class Executor:
    """Counts how many jobs are unfinished at once."""

    def __init__(self, folder: Path, fail: str = "") -> None:
        self.folder, self.fail = folder, fail
        self.jobs: list[Job] = []
        self.most = 0

    def submit(self, function: Any, values: dict[str, Any], *, gpu: str | None, most: int | None) -> Job:
        assert function is work
        assert gpu is None
        self.sides = most
        json.dumps(values)  # plain values only: a worker may be on another machine
        self.jobs.append(Job(values, self.folder / "log.err", self.fail))
        self.most = max(self.most, sum(job.polls <= 2 for job in self.jobs))
        return self.jobs[-1]
