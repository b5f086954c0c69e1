"""Procedural images: any shape, no two alike, structure as pictures have."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dualstudent import priors

SHAPES = [(1, 8, 64), (1, 33, 8), (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 33), (4, 64, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("images", [1, 2, 3, 64])
@pytest.mark.parametrize("prior", [priors.procedural, priors.broad])
def test_procedural_images_fit_any_shape(
    prior: Callable[..., Tensor], shape: tuple[int, int, int], images: int
) -> None:
    torch.manual_seed(0)
    x = prior(images, shape)
    assert x.shape == (images, *shape)
    assert ((x >= 0) & (x <= 1)).all()
    assert len({tuple(row.flatten().tolist()) for row in x}) == images, "no two alike"


@pytest.mark.parametrize("prior", [priors.procedural, priors.broad, priors.scenes, priors.nets])
def test_procedural_images_have_structure(prior: Callable[..., Tensor]) -> None:
    """Neighbours are alike, images are not; dark and light, flat and rich ones are among them."""
    torch.manual_seed(0)
    x = prior(600, (3, 32, 32), torch.device("cpu"))
    grey = x.mean(1)
    step = (grey[:, :, 1:] - grey[:, :, :-1]).abs().mean((1, 2))
    apart = (grey[:, :, 16:] - grey[:, :, :16]).abs().mean((1, 2))
    assert step.mean() < 0.45 * apart.mean()
    assert grey.mean((1, 2)).std() > 0.15
    assert (x.std(1).mean((1, 2)) > 0.02).float().mean() > 0.5, "many have colour"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 33), (4, 16, 16)])
def test_fields_are_of_unit_variance_with_more_or_less_in_common(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = priors._field(400, shape, torch.device("cpu"))
    torch.testing.assert_close(x.std((1, 2, 3)), torch.ones(400), atol=1e-4, rtol=0)
    if shape[0] > 1:
        pairs = [torch.corrcoef(torch.stack(two))[0, 1] for two in zip(_flat(x, 0), _flat(x, 1), strict=True)]
        chance = [
            torch.corrcoef(torch.stack(two))[0, 1] for two in zip(_flat(x, 0)[1:], _flat(x, 1), strict=False)
        ]
        assert torch.stack(pairs).mean() > 0.25
        assert torch.stack(chance).mean().abs() < 0.1


def _flat(x: Tensor, channel: int) -> list[Tensor]:
    return list(x[:, channel].flatten(1))


@pytest.mark.parametrize("size", [2, 5, 16])
@pytest.mark.parametrize("side", [(28, 28), (33, 20)])
def test_fields_are_blown_up_by_bicubic_interpolation(size: int, side: tuple[int, int]) -> None:
    """The two matrices do what torch's interpolation does, of which the middle is taken."""
    noise = torch.randn(3, 2, size + 3, size + 3, generator=torch.Generator().manual_seed(0))
    whole = [math.ceil(s * (size + 3) / size) for s in side]
    expected = torch.nn.functional.interpolate(noise, whole, mode="bicubic")
    top, left = ((w - s) // 2 for w, s in zip(whole, side, strict=True))
    torch.testing.assert_close(
        priors._blown_up(noise, *side),
        expected[:, :, top : top + side[0], left : left + side[1]],
        atol=1e-5,
        rtol=0,
    )
