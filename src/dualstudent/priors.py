"""Procedural images for any shape: smooth fields, strokes, blobs. No data, no network."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

GRIDS = (2, 3, 4, 6, 8, 12, 16)  # cells a side of the noise that is blown up


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


def _field(images: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return random fields (b, c, h, w) of about unit variance: noise at two random scales, blown up."""
    channels, h, w = shape
    grids = [grid for grid in GRIDS if grid <= max(h, w)]
    made = []
    for grid, part in zip(grids, _shares(images, len(grids)), strict=True):
        if not part:
            continue
        other = grids[int(torch.randint(len(grids), ()))]
        weight = _uniform(part, device)
        total = torch.zeros(part, channels, h, w, device=device)
        for size, share in ((grid, weight), (other, 1 - weight)):
            raw = torch.randn(part, channels + 1, size + 3, size + 3, device=device)
            big = F.interpolate(raw, size=_covering(size, h, w), mode="bicubic", align_corners=False)
            top, left = ((b - s) // 2 for b, s in zip(big.shape[2:], (h, w), strict=True))
            big = big[:, :, top : top + h, left : left + w]
            common = _uniform(part, device) if channels > 1 else 0.0
            total += share * (common * big[:, -1:] + (1 - common) * big[:, :-1])
        made.append(total / total.std((1, 2, 3), keepdim=True).clamp_min(1e-3))
    return torch.cat(made)[torch.randperm(images, device=device)]


def _shares(images: int, parts: int) -> list[int]:
    return [images // parts + (i < images % parts) for i in range(parts)]


def _covering(size: int, h: int, w: int) -> tuple[int, int]:
    """Return the size to which size + 3 cells are blown up, so that the middle h×w is free of edges."""
    return -(-h * (size + 3) // size), -(-w * (size + 3) // size)


def _uniform(images: int, device: torch.device) -> Tensor:
    return torch.rand(images, 1, 1, 1, device=device)


def _normal(images: int, device: torch.device) -> Tensor:
    return torch.randn(images, 1, 1, 1, device=device)
