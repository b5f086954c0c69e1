"""Between two queries, a method's networks are one graph each, and the second call does not recompile."""

import os
import subprocess
import sys
from pathlib import Path

from test_contract import LAST


def test_networks_trace_as_whole_graphs_and_do_not_recompile() -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "whole_graph.py")],
        env={**os.environ, "PYTHONPATH": str(here), "DUALSTUDENT_NO_HOOK": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {tuple(line.split()[:2]) for line in done.stdout.splitlines()} == set(LAST)
