"""Labelled images: benchmark data sets and folders of pictures, read without unpickling anything."""

from dualstudent.data.download import DOWNLOADS, Download, fetch
from dualstudent.data.facts import DATA_SETS, SPLITS, DataSet, known_as
from dualstudent.data.images import Images
from dualstudent.data.load import load_data

__all__ = [
    "DATA_SETS",
    "DOWNLOADS",
    "SPLITS",
    "DataSet",
    "Download",
    "Images",
    "fetch",
    "known_as",
    "load_data",
]
