"""Rows of asked images, as a page and a picture show them."""

import base64
import io
from collections.abc import Sequence

from markupsafe import Markup
from PIL import Image

from dualstudent.report.reading import Strip

HEIGHT = 96  # pixels: higher rows are made smaller before they go into a page
PIXELS = 40_000_000  # a picture with more is not opened
WIDE = 560  # pixels on the page that a row of small images is enlarged to


def spread(strips: Sequence[Strip], most: int) -> list[Strip]:
    """Return at most `most` strips, evenly from the first to the last."""
    if len(strips) <= most:
        return list(strips)
    return [strips[round(i * (len(strips) - 1) / (most - 1))] for i in range(most)]


def loaded(strips: Sequence[Strip]) -> list[tuple[int, Image.Image]]:
    """Return the pictures of strips that can be read, with their queries; all as wide as the widest, white
    beside a shorter row, so that its images are no larger than the others.
    """
    found = [(strip.queries, picture) for strip in strips if (picture := load(strip)) is not None]
    widest = max((picture.width for _, picture in found), default=0)
    return [(queries, _widened(picture, widest)) for queries, picture in found]


def _widened(picture: Image.Image, width: int) -> Image.Image:
    if width * picture.height > PIXELS:
        return picture
    wide = Image.new(picture.mode, (width, picture.height), "white")
    wide.paste(picture)
    return wide


def load(strip: Strip) -> Image.Image | None:
    """Return the picture of a strip; None where a run was killed while writing it."""
    try:
        raw = strip.path.read_bytes()
        if raw[:8] != b"\x89PNG\r\n\x1a\n":
            return None
        width, height = int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")
        if not 0 < width * height <= PIXELS:
            return None
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as picture:
            return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except (OSError, ValueError, SyntaxError, EOFError):
        return None


def inline(picture: Image.Image) -> tuple[Markup, int]:
    """Return a picture as a data URI, and how wide it is shown: a whole multiple of its pixels."""
    if picture.height > HEIGHT:
        picture = picture.resize(
            (max(1, picture.width * HEIGHT // picture.height), HEIGHT), Image.Resampling.BOX
        )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Markup(uri), picture.width * max(1, WIDE // picture.width)
