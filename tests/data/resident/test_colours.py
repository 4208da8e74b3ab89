"""Batched colours against OpenCV's of one view."""

import itertools

import numpy as np
import pytest
import torch

from pcd_hub.data.colour_jitter import adjust_colours
from pcd_hub.data.multiband.jitter import adjust_bands
from pcd_hub.data.resident.colours import make_gray, mix, rotate_hue, solarize

RGB = (0, 1, 2)


def views_of(photo, count=1):
    return torch.from_numpy(photo).movedim(-1, 0).float().repeat(count, 1, 1, 1)


def mixes(name, factor):
    return {
        "brightness": (factor, 0.0, 0.0),
        "contrast": (factor, 0.0, 1 - factor),
        "saturation": (factor, 1 - factor, 0.0),
    }[name]


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_every_view_has_its_own_factor(photo, name):
    factors = [0.6, 1.0, 1.4]
    weights = torch.tensor([mixes(name, factor) for factor in factors])
    ours = mix(views_of(photo, 3), weights, RGB)
    for factor, one in zip(factors, ours, strict=True):
        expected = adjust_colours(photo, jitter=((name, factor),))
        difference = one.movedim(0, -1) - torch.from_numpy(expected).float()
        assert difference.abs().max() <= 1
        assert difference.mean().abs() < 0.1, "OpenCV's factors have 10 bits"


def test_only_the_chosen_views_are_rotated_in_hue(photo):
    shifts = torch.tensor([-25 / 256, 13 / 256])
    views = views_of(photo, 3)
    rotate_hue(views, torch.tensor([2, 0]), shifts, RGB)
    assert torch.equal(views[1], views_of(photo)[0])
    for row, shift in ((2, shifts[0]), (0, shifts[1])):
        expected = adjust_colours(photo, jitter=(("hue", float(shift)),))
        difference = views[row].movedim(0, -1) - torch.from_numpy(expected).float()
        # OpenCV keeps hue and saturation with 8 bits each.
        assert difference.abs().max() <= 8
        assert difference.abs().mean() < 1


def test_gray_pixels_keep_their_colour_when_the_hue_rotates():
    gray = torch.full((1, 3, 2, 2), 77.0)
    rotated = gray.clone()
    rotate_hue(rotated, torch.tensor([0]), torch.tensor([0.3]), RGB)
    assert torch.equal(rotated, gray)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1::2])
def test_steps_in_their_order(photo, order):
    """The order matters, since each step is rounded and clipped."""
    jitter = [[("brightness", 1.4), ("contrast", 0.6), ("saturation", 1.2)][i] for i in order]
    expected = adjust_colours(photo, jitter=tuple(jitter))
    views = views_of(photo)
    for name, factor in jitter:
        views = mix(views, torch.tensor([mixes(name, factor)]), RGB)
    difference = views[0].movedim(0, -1) - torch.from_numpy(expected).float()
    assert difference.abs().max() <= 2
    assert difference.abs().mean() < 0.1


@pytest.mark.parametrize("colours", [(), (3, 1, 0)])
def test_other_bands_change_in_brightness_and_contrast_alone(photo, colours):
    rng = np.random.default_rng(1)
    view = np.dstack([photo, rng.integers(0, 256, photo.shape[:2], dtype=np.uint8), photo[..., 0]])
    jitter = (("contrast", 0.7), ("hue", 20 / 256), ("saturation", 1.2), ("brightness", 1.3))

    def adjust(rgb):
        return adjust_colours(rgb, jitter=jitter, gray=True)

    expected = adjust_bands(view.copy(), jitter, colours=colours, adjust_colours=adjust)
    views = views_of(view)
    for name, factor in jitter:
        if name == "hue":
            rotate_hue(views, torch.tensor([0]), torch.tensor([factor]), colours)
        else:
            views = mix(views, torch.tensor([mixes(name, factor)]), colours)
    make_gray(views, torch.tensor([0]), colours)
    difference = views[0].movedim(0, -1) - torch.from_numpy(expected).float()
    assert difference.abs().max() <= 8
    assert difference.abs().mean() < 0.8
    assert not np.array_equal(expected, view)


def test_only_the_chosen_views_become_gray(photo):
    views = views_of(photo, 2)
    make_gray(views, torch.tensor([1]), RGB)
    assert torch.equal(views[0], views_of(photo)[0])
    expected = torch.from_numpy(adjust_colours(photo, jitter=(), gray=True)).float()
    assert (views[1].movedim(0, -1) - expected).abs().max() <= 1


def test_bright_pixels_of_chosen_views_are_inverted():
    views = torch.tensor([0.0, 127.0, 128.0, 255.0]).view(1, 1, 1, 4).repeat(2, 1, 1, 1)
    found = solarize(views, torch.tensor([True, False]))
    assert found[0].flatten().tolist() == [0, 127, 127, 0]
    assert torch.equal(found[1], views[1])
