"""Procedural images for any shape: fields, strokes, blobs, scenes, untrained nets. No data at all."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dualstudent.numerics import exact

GRIDS = (2, 3, 4, 6, 8, 12, 16)  # cells a side of the noise that is blown up
COARSE = (2, 3, 4, 6, 8)  # of fields that are part of a scene
SMALL = 12  # pixels a side from which a scene can be seen
LAYERS = 5  # shapes in a scene, at most
NET = 12  # width of a network that paints


def noise(
    images: int, shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Float[Tensor, "b c h w"]:
    """Return pixels in [0, 1], each drawn by itself."""
    return torch.rand(images, *shape, device=device)


def procedural(
    images: int, shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Float[Tensor, "b c h w"]:
    """Return pixels in [0, 1]: a third each of smooth fields, strokes and blobs, in random order."""
    parts = zip((fields, strokes, blobs), _shares(images, 3), strict=True)
    pixels = torch.cat([kind(share, shape, torch.device(device)) for kind, share in parts if share])
    pixels = torch.where(torch.rand(images, 1, 1, 1, device=device) < 0.5, pixels, 1 - pixels)
    return pixels[torch.randperm(images, device=device)]


def broad(
    images: int, shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Float[Tensor, "b c h w"]:
    """Return pixels in [0, 1]: a half procedural, the others scenes, nets and blends, in random order.

    All procedural below SMALL pixels, where scenes are noise: on 8×8 digits they cost a point or two.
    """
    if max(shape[1:]) < SMALL:
        return procedural(images, shape, device)
    place = torch.device(device)
    plain, staged, netted, mixed = _parts(images, (0.5, 0.35, 0.075, 0.075))
    parts = [procedural(plain, shape, place)] if plain else []
    parts += [scenes(staged, shape, place)] if staged else []
    parts += [nets(netted, shape, place)] if netted else []
    if mixed:
        share = _uniform(mixed, place)
        pairs = procedural(mixed, shape, place), scenes(mixed, shape, place)
        parts.append(share * pairs[0] + (1 - share) * pairs[1])
    return torch.cat(parts)[torch.randperm(images, device=place)]


def scenes(images: int, shape: tuple[int, int, int], device: torch.device) -> Float[Tensor, "b c h w"]:
    """Return a ground with one to five filled shapes on it, some inside the last, some mirrored, in
    random light, some blurred, some grainy: dead leaves with outlines, textures and symmetry.
    """
    depth = torch.randint(1, LAYERS + 1, (images,), device=device).sort(descending=True).values
    x = _ground(images, shape, device)
    within = torch.ones(images, 1, *shape[1:], device=device)
    for layer in range(LAYERS):
        deep = int((depth > layer).sum())  # the first images: they are sorted
        if not deep:
            break
        mask, inside = _mask(deep, shape, device), _uniform(deep, device) < 0.4
        within = torch.where(inside, mask * within[:deep], mask)
        x = torch.cat([x[:deep] + within * (_filling(deep, shape, device) - x[:deep]), x[deep:]])
    return _developed(_mirrored(x, 0.3))


def nets(images: int, shape: tuple[int, int, int], device: torch.device) -> Float[Tensor, "b c h w"]:
    """Return what untrained networks paint, one network an image: pixel coordinates to colours."""
    channels, h, w = shape
    rows, columns = _coordinates(shape, device)
    radius = (rows**2 + columns**2).sqrt()
    plane = torch.stack([at.expand(1, 1, h, w) for at in (rows, columns, radius)], -1)
    x = plane.reshape(1, h * w, 3) * 8 ** _uniform(images, device)[:, 0]
    for width, gain in ((3, 3.0), (NET, 2.0), (NET, 2.0)):
        weight = torch.randn(images, width, NET, device=device) * (gain / width**0.5)
        x = torch.tanh(torch.baddbmm(torch.randn(images, 1, NET, device=device), x, weight))
    weight = torch.randn(images, NET, channels, device=device) * (4 / NET**0.5)
    return torch.sigmoid(x @ weight).transpose(1, 2).reshape(images, channels, h, w)


def fields(images: int, shape: tuple[int, int, int], device: torch.device) -> Float[Tensor, "b c h w"]:
    """Return smooth random fields of random contrast and brightness."""
    contrast = 0.5 * 16 ** _uniform(images, device)
    return torch.sigmoid(contrast * _field(images, shape, device) + 2 * _normal(images, device))


def strokes(images: int, shape: tuple[int, int, int], device: torch.device) -> Float[Tensor, "b c h w"]:
    """Return level curves of random fields, of random width, inside a random disc, on a plain ground."""
    field = _field(images, (1, *shape[1:]), device)
    width = 0.05 + 0.45 * _uniform(images, device)
    line = torch.sigmoid((width - field.abs()) * 12) * _disc(images, shape, device)
    return _painted(line, shape, device)


def blobs(images: int, shape: tuple[int, int, int], device: torch.device) -> Float[Tensor, "b c h w"]:
    """Return what of a random field is above a random level, on a plain or on a smooth ground."""
    field = _field(images, (1, *shape[1:]), device)
    inside = torch.sigmoid((field - 0.8 * _normal(images, device)) * 12) * _disc(images, shape, device)
    painted = _painted(inside, shape, device)
    smooth = fields(images, shape, device)
    return torch.where(_uniform(images, device) < 0.5, painted, inside * painted + (1 - inside) * smooth)


def _ground(images: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return what shapes lie on: any filling, or for a third of the images nothing, black or white."""
    nothing = (_uniform(images, device) < 0.3).float()
    return torch.where(_uniform(images, device) < 0.35, nothing, _filling(images, shape, device))


def _mask(images: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return soft masks (b, 1, h, w): a quarter each of polygons, outlines, blobs and strokes."""
    plain, outlined, blob, stroke = _shares(images, 4)
    depths = [_polygon(plain, shape, device)]
    depths.append(0.04 + 0.16 * _uniform(outlined, device) - _polygon(outlined, shape, device).abs())
    if blob + stroke:
        field = _mirrored(_field(blob + stroke, (1, *shape[1:]), device, COARSE), 0.3)
        depths.append(0.4 * (field[:blob] - 0.8 * _normal(blob, device)))
        depths.append(0.5 * (0.05 + 0.4 * _uniform(stroke, device) - field[blob:].abs()))
    order = torch.randperm(images, device=device)
    return torch.sigmoid(torch.cat(depths)[order] * (6 + 24 * _uniform(images, device)))


def _polygon(images: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return how deep each pixel is in a polygon of 3 to 8 sides or an ellipse, half a side of the image
    as the unit; below zero outside. A half of them stand upright.
    """
    rows, columns = _coordinates(shape, device)
    stretch = torch.exp(0.35 * _normal(images, device))
    y = (rows - 0.25 * _normal(images, device)) * stretch
    x = (columns - 0.25 * _normal(images, device)) / stretch
    turn = 2 * math.pi * _uniform(images, device)
    eighth = math.pi / 4
    turn = torch.where(_uniform(images, device) < 0.5, (turn / eighth).round() * eighth, turn)
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    distance = (u**2 + v**2).sqrt()
    sector = 2 * math.pi / torch.randint(3, 9, (images, 1, 1, 1), device=device)
    to_edge = distance * torch.cos(torch.atan2(v, u) % sector - sector / 2)
    round_ = _uniform(images, device) < 0.4
    return 0.25 + 0.75 * _uniform(images, device) - torch.where(round_, distance, to_edge)


def _filling(images: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return two colours (b, c, h, w), one turning into the other: not at all, along a line, smoothly
    or in stripes and checks, a quarter each.
    """
    rows, columns = _coordinates(shape, device)
    plain, ramp, smooth, striped = _shares(images, 4)
    turn = 2 * math.pi * _uniform(ramp + striped, device)
    along, across = columns * turn.cos() + rows * turn.sin(), rows * turn.cos() - columns * turn.sin()
    parts = [torch.zeros(plain, 1, *shape[1:], device=device), (0.5 + along[:ramp] / 2).clamp(0, 1)]
    if smooth:
        field = _field(smooth, (1, *shape[1:]), device, COARSE)
        parts.append(torch.sigmoid(field * (0.5 + 3.5 * _uniform(smooth, device))))
    often = 2 + 14 * _uniform(striped, device)
    wave = torch.sin(along[ramp:] * often + 2 * math.pi * _uniform(striped, device))
    checks = torch.where(_uniform(striped, device) < 0.5, wave, wave * torch.sin(across[ramp:] * often))
    parts.append(torch.sigmoid(checks * (1 + 7 * _uniform(striped, device))))
    change = torch.cat(parts)[torch.randperm(images, device=device)]
    one, two = _colour(images, shape, device), _colour(images, shape, device)
    return one + (two - one) * change


def _colour(images: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return colours (b, c, 1, 1): of any brightness, often none or all, and mostly of little tint."""
    bright = 1.1 * _uniform(images, device) - 0.05
    bright = torch.where(_uniform(images, device) < 0.25, bright.round(), bright)
    tint = torch.randn(images, shape[0], 1, 1, device=device)
    tint = 0.35 * _uniform(images, device) * (tint - tint.mean(1, keepdim=True))
    return (bright + tint).clamp(0, 1)


def _developed(x: Tensor) -> Tensor:
    """Return images in another light, a half of them; a half a little blurred; two in five with grain."""
    images, device = len(x), x.device
    gain, offset = 0.3 + _uniform(images, device), 0.15 * _normal(images, device)
    lit = ((x - 0.5) * gain + 0.5 + offset).clamp(0, 1)
    x = torch.where(_uniform(images, device) < 0.5, lit, x)
    wider = F.pad(x, (1, 1, 1, 1), mode="replicate")
    blurred = wider[:, :, :-2] + wider[:, :, 1:-1] + wider[:, :, 2:]
    blurred = (blurred[..., :-2] + blurred[..., 1:-1] + blurred[..., 2:]) / 9
    x = x + (blurred - x) * _uniform(images, device) * (_uniform(images, device) < 0.5)
    grain = 0.1 * _uniform(images, device) ** 2 * (_uniform(images, device) < 0.4)
    return (x + grain * torch.randn_like(x)).clamp(0, 1)


def _mirrored(x: Tensor, share: float) -> Tensor:
    """Return images of which a share has the right half mirrored to the left."""
    left = torch.arange(x.shape[3], device=x.device) < x.shape[3] // 2
    return torch.where((_uniform(len(x), x.device) < share) & left, x.flip(3), x)


def _coordinates(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row (1, 1, h, 1) and column (1, 1, 1, w) of each pixel, the longer side from −1 to 1."""
    longer = max(shape[1:])
    rows, columns = (
        torch.arange(side, device=device) * 2 / longer - (side - 1) / longer for side in shape[1:]
    )
    return rows.view(1, 1, -1, 1), columns.view(1, 1, 1, -1)


def _painted(mask: Tensor, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return a mask (b, 1, h, w) in one random colour on a ground of another, apart in brightness."""
    images, channels = len(mask), shape[0]
    tint = 0.3 * torch.randn(2, images, channels, 1, 1, device=device)
    bright = 0.6 + 0.4 * _uniform(images, device)
    ground = 0.3 * _uniform(images, device) * (_uniform(images, device) < 0.5)
    if channels == 1:
        tint = tint * 0
    return (mask * (bright + tint[0]) + (1 - mask) * (ground + tint[1])).clamp(0, 1)


def _disc(images: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return soft discs (b, 1, h, w) of random place and size; for half of the images, everything."""
    rows = torch.linspace(-1, 1, shape[1], device=device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, shape[2], device=device).view(1, 1, 1, -1)
    place = 0.3 * torch.randn(2, images, 1, 1, 1, device=device)
    radius = 0.4 + 0.7 * _uniform(images, device)
    distance = ((rows - place[0]) ** 2 + (columns - place[1]) ** 2).sqrt()
    whole = _uniform(images, device) < 0.5
    return torch.where(whole, 1.0, torch.sigmoid((radius - distance) * 15))


def _field(
    images: int, shape: tuple[int, int, int], device: torch.device, grids: Sequence[int] = GRIDS
) -> Tensor:
    """Return random fields (b, c, h, w) of about unit variance: noise at two random scales, blown up."""
    channels, h, w = shape
    grids = [grid for grid in grids if grid <= max(h, w)]
    made = []
    for grid, part in zip(grids, _shares(images, len(grids)), strict=True):
        if not part:
            continue
        other = grids[int(torch.randint(len(grids), ()))]
        weight = _uniform(part, device)
        total = torch.zeros((), device=device)
        for size, share in ((grid, weight), (other, 1 - weight)):
            raw = torch.randn(part, channels + 1, size + 3, size + 3, device=device)
            common = _uniform(part, device) if channels > 1 else 0.0
            raw = share * (common * raw[:, -1:] + (1 - common) * raw[:, :-1])
            total = total + _blown_up(raw, h, w)
        made.append(total / _spread(total).clamp_min(1e-3))
    return torch.cat(made)[torch.randperm(images, device=device)]


def _blown_up(raw: Float[Tensor, "b c s s"], h: int, w: int) -> Float[Tensor, "b c h w"]:
    """Return grids with three cells more than fill an image, blown up by bicubic interpolation."""
    with exact(raw.device):
        rows, columns = (_bicubic(raw.shape[2] - 3, side, raw.device).to(raw.dtype) for side in (h, w))
        return (raw.transpose(2, 3) @ rows.t()).transpose(2, 3) @ columns.t()


def _spread(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    """Return the standard deviation of each image's values, a tenth of the time that torch's takes."""
    off = x - x.mean((1, 2, 3), keepdim=True)
    return (off.square_().sum((1, 2, 3), keepdim=True) / (x[0].numel() - 1)).sqrt()


def _shares(images: int, parts: int) -> list[int]:
    return [images // parts + (i < images % parts) for i in range(parts)]


def _parts(images: int, shares: Sequence[float]) -> list[int]:
    """Return how many images each share of them is; what rounding leaves over falls to chance."""
    ends = [0.0, *accumulate(shares)]
    luck = float(torch.rand(()))
    marks = [math.floor(images * end / ends[-1] + luck) for end in ends]
    marks[0], marks[-1] = 0, images
    return [min(after, images) - min(before, images) for before, after in pairwise(marks)]


@lru_cache
def _bicubic(size: int, side: int, device: torch.device) -> Tensor:
    """Return the matrix (side, size + 3) of bicubic interpolation that blows size cells up to a side.

    Of size + 3 cells the middle is taken, so that it is free of edges.
    """
    whole = -(-side * (size + 3) // size)
    cells = torch.eye(size + 3, dtype=torch.float64, device=device)[None, None]
    return F.interpolate(cells, (whole, size + 3), mode="bicubic")[0, 0, (whole - side) // 2 :][:side]


def _uniform(images: int, device: torch.device) -> Tensor:
    return torch.rand(images, 1, 1, 1, device=device)


def _normal(images: int, device: torch.device) -> Tensor:
    return torch.randn(images, 1, 1, 1, device=device)
