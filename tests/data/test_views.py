import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from pcd_hub.data.scenes import render_scene
from pcd_hub.data.views import ViewPolicy, byol_views, draw_view, render_view

IMAGE = Image.fromarray(render_scene(0, 1, size=120).image)


def test_a_view_is_a_function_of_seed_epoch_and_index():
    views = byol_views(48, seed=3)
    one = views(IMAGE, epoch=1, index=7)
    assert one.shape == (2, 3, 48, 48)
    torch.manual_seed(1)
    assert torch.equal(views(IMAGE, epoch=1, index=7), one)
    for other in (
        views(IMAGE, epoch=2, index=7),
        views(IMAGE, epoch=1, index=8),
        byol_views(48, seed=4)(IMAGE, epoch=1, index=7),
    ):
        assert not torch.equal(other, one)
    assert not torch.equal(one[0], one[1])


PLAIN = {
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "blur_probability": 0.0,
    "flip_probability": 0.0,
}


def test_with_everything_off_a_view_is_the_resized_image():
    policy = ViewPolicy(crop_area=(1.0, 1.0), **PLAIN)
    square = IMAGE.resize((64, 64))
    parameters = draw_view(policy, np.random.default_rng(0), width=64, height=64)
    if parameters.box != (0, 0, 64, 64):
        parameters = draw_view(policy, np.random.default_rng(0), width=64, height=64)
    view = render_view(square, parameters, size=64)
    assert view.shape == (3, 64, 64)


def draws(policy, count=4000, width=500, height=375):
    rng = np.random.default_rng(0)
    return [draw_view(policy, rng, width=width, height=height) for _ in range(count)]


def torchvision_boxes(count):
    """Areas and aspect ratios of torchvision's RandomResizedCrop."""
    image = torch.empty(3, 375, 500)
    boxes = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    return (
        np.asarray([h * w / (500 * 375) for _, _, h, w in boxes]),
        np.asarray([w / h for _, _, h, w in boxes]),
    )


def test_the_draws_have_the_distribution_they_are_named_for():
    first = byol_views(224, seed=0).first
    drawn = draws(first)
    areas = np.asarray(
        [
            (right - left) * (bottom - top) / (500 * 375)
            for left, top, right, bottom in (d.box for d in drawn)
        ]
    )
    aspects = np.asarray(
        [(right - left) / (bottom - top) for left, top, right, bottom in (d.box for d in drawn)]
    )
    reference_areas, reference_aspects = torchvision_boxes(len(drawn))
    for ours, theirs in ((areas, reference_areas), (aspects, reference_aspects)):
        error = 4 * np.sqrt(2 / len(drawn))
        assert abs(ours.mean() - theirs.mean()) < error * theirs.std()
        assert ours.std() == pytest.approx(theirs.std(), rel=0.05)
        assert ours.min() == pytest.approx(theirs.min(), abs=0.02)
        assert ours.max() == pytest.approx(theirs.max(), abs=0.05)

    def share(what):
        return np.mean([bool(what(d)) for d in drawn])

    assert share(lambda d: d.flip) == pytest.approx(0.5, abs=0.03)
    assert share(lambda d: d.jitter) == pytest.approx(0.8, abs=0.03)
    assert share(lambda d: d.gray) == pytest.approx(0.2, abs=0.03)
    assert share(lambda d: d.blur_sigma > 0) == 1
    assert share(lambda d: d.solarize) == 0
    factors = dict(zip(("brightness", "hue"), ([], []), strict=True))
    for d in drawn:
        for name, factor in d.jitter:
            factors.setdefault(name, []).append(factor)
    assert np.min(factors["brightness"]) == pytest.approx(0.6, abs=0.01)
    assert np.max(factors["hue"]) == pytest.approx(0.1, abs=0.01)
    assert {d.jitter[0][0] for d in drawn if d.jitter} == {
        "brightness",
        "contrast",
        "saturation",
        "hue",
    }


def test_the_second_view_is_the_asymmetric_one():
    second = draws(byol_views(224, seed=0).second)
    assert np.mean([d.blur_sigma > 0 for d in second]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([d.solarize for d in second]) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (7, 7)])
def test_tiny_and_oblong_images_give_views(size):
    views = byol_views(32, seed=0)
    for index in range(20):
        assert views(Image.new("RGB", size, "red"), epoch=0, index=index).shape == (2, 3, 32, 32)


def test_flip_and_gray_do_what_they_say():
    drawn = draw_view(
        ViewPolicy(crop_area=(1.0, 1.0), **PLAIN), np.random.default_rng(1), width=120, height=120
    )
    import dataclasses

    straight = render_view(IMAGE, drawn, size=120)
    flipped = render_view(IMAGE, dataclasses.replace(drawn, flip=True), size=120)
    assert torch.equal(flipped, straight.flip(2))
    gray = render_view(IMAGE, dataclasses.replace(drawn, gray=True), size=120)
    assert torch.equal(gray[0], gray[1])
    inverted = render_view(IMAGE, dataclasses.replace(drawn, solarize=True), size=120)
    assert torch.equal(inverted, torch.where(straight < 128, straight, 255 - straight))
    blurred = render_view(IMAGE, dataclasses.replace(drawn, blur_sigma=4.0), size=120)
    assert blurred.float().var() < straight.float().var()
