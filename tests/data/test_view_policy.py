"""Sets of augmentations, and a switch for each part."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.data.scenes import render_scene
from pcd_hub.data.view_policy import Switches, ViewPolicy, switches_of, view_policies
from pcd_hub.data.views import TwoViewTransform, draw_view, render_view, render_view_with_pillow

PARTS = [field.name for field in dataclasses.fields(Switches)]
IMAGE = Image.fromarray(render_scene(0, 1, size=96).image)


def test_the_default_is_byols_pair():
    assert view_policies("default") == (
        ViewPolicy(),
        ViewPolicy(blur_probability=0.1, solarize_probability=0.2),
    )


def test_a_light_view_keeps_hues_and_has_no_gray_and_no_solarize():
    first, second = view_policies("light")
    assert first == second
    assert (first.hue, first.gray_probability, first.solarize_probability) == (0, 0, 0)
    assert (first.brightness, first.contrast, first.saturation) == (0.2, 0.2, 0.1)
    assert (first.blur_probability, first.flip_probability) == (0.1, 0.5)


def test_without_augmentation_a_view_is_a_resized_crop():
    first, second = view_policies("none", crop_area=(1.0, 1.0))
    views = TwoViewTransform(image_size=96, first=first, second=second, seed=0)
    whole = torch.from_numpy(np.array(IMAGE)).permute(2, 0, 1)
    for index in range(8):
        pair = views(IMAGE, epoch=0, index=index)
        assert torch.equal(pair[0], whole)
        assert torch.equal(pair[1], whole)


@pytest.mark.parametrize("augment", ["default", "light", "none"])
@pytest.mark.parametrize("part", PARTS)
def test_a_switch_changes_its_part_alone(augment, part):
    plain = view_policies(augment)
    for is_on in (True, False):
        pair = view_policies(augment, Switches(**{part: is_on}))
        found, before = (dataclasses.asdict(switches_of(one)) for one in (pair, plain))
        assert found == {**before, part: is_on}
        if before[part] == is_on:
            assert pair == plain, "a part that the set has keeps its strength"


def test_a_part_that_the_set_lacks_is_that_of_the_default():
    first, second = view_policies("none", Switches(blur=True, solarize=True, gray=True))
    usual = view_policies("default")
    assert (first.blur_probability, second.blur_probability) == (1.0, 0.1)
    assert (first.solarize_probability, second.solarize_probability) == (0.0, 0.2)
    assert first.gray_probability == usual[0].gray_probability


def test_numbers_replace_those_of_the_set():
    first, second = view_policies(
        "light", Switches(gray=True), hue=0.3, gray_probability=0.7, crop_area=(0.5, 0.9)
    )
    for policy in (first, second):
        assert (policy.hue, policy.gray_probability, policy.crop_area) == (0.3, 0.7, (0.5, 0.9))


@pytest.mark.parametrize("render", [render_view, render_view_with_pillow])
def test_a_vertical_flip_mirrors_top_and_bottom(render):
    policy = dataclasses.replace(view_policies("none")[0], crop_area=(1.0, 1.0))
    parameters = draw_view(policy, np.random.default_rng(0), width=96, height=96)
    assert not parameters.vertical_flip
    mirrored = render(IMAGE, dataclasses.replace(parameters, vertical_flip=True), size=96)
    assert torch.equal(mirrored, render(IMAGE, parameters, size=96).flip(1))


def test_vertical_flips_are_half_of_the_views_and_change_no_other_draw():
    on = view_policies("default", Switches(vertical_flip=True))[0]
    drawn = [draw_view(on, np.random.default_rng(n), width=64, height=48) for n in range(400)]
    without = [
        draw_view(ViewPolicy(), np.random.default_rng(n), width=64, height=48) for n in range(400)
    ]
    assert 160 < sum(one.vertical_flip for one in drawn) < 240
    assert [dataclasses.replace(one, vertical_flip=False) for one in drawn] == without
