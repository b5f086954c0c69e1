"""Rows of images that were asked, as page and picture show them."""

from pathlib import Path

from PIL import Image

from dualstudent.report.reading import Strip
from dualstudent.report.strips import loaded


def test_images_of_a_short_row_are_no_larger_than_others(tmp_path: Path) -> None:
    found = []
    for queries, images in ((10, 12), (20, 3)):
        path = tmp_path / f"{queries}.png"
        Image.new("L", (9 * images - 1, 8)).save(path)
        found.append(Strip(queries, path))
    Image.new("L", (1, 10_000_000)).save(tmp_path / "high.png")
    rows = loaded([*found, Strip(30, tmp_path / "high.png"), Strip(40, tmp_path / "none.png")])
    assert [queries for queries, _ in rows] == [10, 20, 30], "what is not there is left out"
    assert [picture.size for _, picture in rows] == [(107, 8), (107, 8), (1, 10_000_000)]
    assert rows[1][1].getpixel((25, 0)) == 0
    assert rows[1][1].getpixel((26, 0)) == 255
