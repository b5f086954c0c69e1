"""A sweep's file, small enough to be run in a test; the fixture `write` writes it, changed."""

from collections.abc import Callable
from pathlib import Path

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
