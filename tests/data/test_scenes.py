import numpy as np
import pytest

from pcd_hub.data.scenes import CLASSES, render_scene


def test_a_scene_is_a_function_of_seed_and_index():
    one, again, other = render_scene(1, 2), render_scene(1, 2), render_scene(1, 3)
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.mask, again.mask)
    assert not np.array_equal(one.image, other.image)
    assert not np.array_equal(one.image, render_scene(2, 2).image)


@pytest.mark.parametrize("size", [32, 96, 130])
def test_a_scene_has_the_requested_size(size):
    scene = render_scene(0, 0, size=size)
    assert scene.image.shape == (size, size, 3)
    assert scene.mask.shape == (size, size)


def test_boxes_contain_the_visible_part_of_their_object():
    for index in range(50):
        scene = render_scene(5, index)
        assert len(scene.boxes) == len(scene.labels)
        for (x0, y0, x1, y1), label in zip(scene.boxes.astype(int), scene.labels, strict=True):
            assert 0 <= x0 < x1 <= 96
            assert 0 <= y0 < y1 <= 96
            assert (scene.mask[y0:y1, x0:x1] == label).any()


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(9, index) for index in range(400)]


def test_objects_cover_about_half_and_classes_are_balanced(scenes):
    masks = np.stack([scene.mask for scene in scenes])
    share = np.bincount(masks.ravel(), minlength=len(CLASSES)) / masks.size
    assert 0.4 < share[0] < 0.6
    assert (share[1:] > 0.035).all()
    assert (share[1:] < 0.08).all()


def test_colour_does_not_depend_on_the_class(scenes):
    """The mean colours of the classes agree within sampling error."""
    sums, counts = np.zeros((len(CLASSES), 3)), np.zeros(len(CLASSES))
    for scene in scenes:
        for label in np.unique(scene.mask):
            sums[label] += scene.image[scene.mask == label].mean(0)
            counts[label] += 1
    means = (sums / counts[:, None])[1:]
    assert np.abs(means - means.mean(0)).max() < 25


def test_most_objects_of_a_scene_share_a_class(scenes):
    shares = [
        (scene.labels == np.bincount(scene.labels).argmax()).mean()
        for scene in scenes
        if len(scene.labels) > 1
    ]
    assert np.mean(shares) > 0.75


def test_objects_cast_shadows_on_the_background(monkeypatch):
    with_shadow = render_scene(3, 4).image.astype(float)
    monkeypatch.setattr("pcd_hub.data.scenes._SHADOW", np.float32(1))
    without = render_scene(3, 4).image.astype(float)
    darker = (without - with_shadow).mean(2) > 10
    assert 0.005 < darker.mean() < 0.3
    assert (with_shadow - without).max() <= 0
