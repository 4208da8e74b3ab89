import numpy as np
import pytest
import torch

from pcd_hub.method.resampling import Resample, resample

COARSER = [(16, 7), (14, 7), (7, 6), (37, 16), (5, 1)]
FINER = [(7, 14), (7, 16), (4, 7), (2, 3), (1, 3), (7, 7)]
GRIDS = COARSER + FINER


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_resampling_keeps_the_mean_and_a_constant(old, new):
    noise = torch.randn(2, 3, old, 5, dtype=torch.float64)
    resampled = Resample((old, 5), (new, 8))(noise)
    assert resampled.shape == (2, 3, new, 8)
    torch.testing.assert_close(resampled.mean((2, 3)), noise.mean((2, 3)), rtol=1e-12, atol=1e-14)
    ones = torch.ones_like(noise)
    torch.testing.assert_close(Resample((old, 5), (new, 8))(ones), torch.ones_like(resampled))
    assert resampled.max() <= noise.max(), "the weights are no less than 0"


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_a_cell_is_the_mean_over_its_exact_footprint(old, new):
    """Against a written-out mean over many points of the function that the old cells describe."""
    values, points = torch.randn(old, dtype=torch.float64).tolist(), 20_000
    expected = []
    for cell in range(new):
        places = (cell + (np.arange(points) + 0.5) / points) * old / new
        if new <= old:
            expected.append(np.take(values, places.astype(int)).mean())
        else:
            expected.append(np.interp(places, np.arange(old) + 0.5, values).mean())
    maps = torch.tensor(values, dtype=torch.float64).view(1, 1, 1, old)
    resampled = Resample((1, old), (1, new))(maps).flatten().numpy()
    np.testing.assert_allclose(resampled, expected, atol=2e-4)


def test_resampling_under_autocast_keeps_the_mean_in_float32():
    pixels = torch.randn(2, 3, 16, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        resampled = Resample((16, 16), (7, 7))(pixels)
    assert resampled.dtype == torch.float32
    exact = pixels.float().mean((2, 3))
    torch.testing.assert_close(resampled.mean((2, 3)), exact, rtol=0, atol=1e-6)


def test_maps_of_the_right_size_are_returned_as_they_are():
    maps = torch.randn(2, 3, 4, 6)
    assert resample(maps, (4, 6)) is maps
    assert torch.equal(resample(maps, (2, 3)), Resample((4, 6), (2, 3))(maps))


def test_the_first_call_under_inference_mode_leaves_later_ones_differentiable():
    with torch.inference_mode():
        resample(torch.randn(1, 2, 9, 9), (3, 5))
    maps = torch.randn(1, 2, 9, 9, requires_grad=True)
    resample(maps, (3, 5)).sum().backward()
    assert maps.grad is not None
