"""Views of several bands: the colours as in RGB images, the other bands beside them."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.data.multiband.image import BandImage
from pcd_hub.data.scenes import render_scene
from pcd_hub.data.views import ViewParameters, byol_views, render_view

PHOTO = render_scene(5, 0, size=96).image
NIR = 255 - PHOTO[..., 1]
BANDS = BandImage.from_array(np.dstack([NIR, PHOTO]))
COLOURS = (1, 2, 3)
PLAIN = ViewParameters(
    box=(3.0, 5.0, 90.0, 80.0), flip=False, jitter=(), gray=False, blur_sigma=0.0, solarize=False
)
JITTER = (("contrast", 0.7), ("hue", 0.1), ("brightness", 1.3), ("saturation", 0.8))


def bands_of(**change):
    parameters = dataclasses.replace(PLAIN, **change)
    return render_view(BANDS, parameters, size=(40, 56), colours=COLOURS)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flip": True},
        {"jitter": JITTER},
        {"gray": True},
        {"blur_sigma": 2.0},
        {"solarize": True},
        {"jitter": JITTER, "gray": True, "blur_sigma": 1.0, "solarize": True, "flip": True},
    ],
    ids=str,
)
def test_the_colours_are_those_of_the_rgb_view(change):
    parameters = dataclasses.replace(PLAIN, **change)
    rgb = render_view(Image.fromarray(PHOTO), parameters, size=(40, 56))
    assert torch.equal(bands_of(**change)[1:], rgb)


def test_other_bands_change_in_brightness_and_contrast_only():
    plain = bands_of()[0].double()
    for colour in ({"gray": True}, {"jitter": (("hue", 0.1), ("saturation", 0.5))}):
        assert torch.equal(bands_of(**colour)[0].double(), plain)
    brighter = bands_of(jitter=(("brightness", 1.3),))[0].double()
    assert (brighter - (1.3 * plain).clamp(0, 255)).abs().max() <= 0.5
    flat = bands_of(jitter=(("contrast", 0.5),))[0].double()
    assert (flat - (plain + plain.mean()) / 2).abs().max() <= 1
    assert torch.equal(bands_of(flip=True)[0].double(), plain.flip(1))
    assert bands_of(blur_sigma=8.0)[0].double().var() < plain.var()
    inverted = bands_of(solarize=True)[0].double()
    assert torch.equal(inverted, torch.where(plain < 128, plain, 255 - plain))


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_any_number_of_bands_without_colours(count):
    image = BandImage.from_array(np.repeat(NIR[..., None], count, axis=2))
    views = dataclasses.replace(byol_views((24, 32), seed=0), num_bands=count, colours=())
    for index in range(10):
        pair = views(image, epoch=0, index=index)
        assert pair.shape == (2, count, 24, 32)
        assert torch.equal(pair, pair[:, :1].expand_as(pair)), "equal bands stay equal"


def test_the_boxes_do_not_depend_on_the_bands():
    views = byol_views(32, seed=0)
    others = dataclasses.replace(views, num_bands=4, colours=COLOURS)
    assert views.draw((96, 96), epoch=0, index=3) == others.draw((96, 96), epoch=0, index=3)
