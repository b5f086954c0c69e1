"""Reports: run directories to one HTML page or one picture. Reads files only, needs no network."""

from dualstudent.report.page import render
from dualstudent.report.picture import curves_png
from dualstudent.report.transfer import transfer_png

__all__ = ["curves_png", "render", "transfer_png"]
