"""Reports: run directories to one HTML page or one picture. Reads files only, needs no network."""

from dualstudent.report.page import render
from dualstudent.report.picture import curves_png

__all__ = ["curves_png", "render"]
