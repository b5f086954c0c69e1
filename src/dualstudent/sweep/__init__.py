"""Many runs from one file: methods × targets × labels × seeds × budgets."""

from dualstudent.sweep.matrix import Cell, Sweep, cells, read_sweep
from dualstudent.sweep.summary import rows, write_summary
from dualstudent.sweep.work import Outcome, start, state

__all__ = ["Cell", "Outcome", "Sweep", "cells", "read_sweep", "rows", "start", "state", "write_summary"]
