"""Batches of resident images against those of the loader."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.loader import training_batches
from pcd_hub.data.resident import batches as resident_module
from pcd_hub.data.resident.batches import in_threads, resident_batches
from pcd_hub.data.views import EarlyViews, byol_views
from pcd_hub.errors import DataError

VIEWS = byol_views(24, seed=3)

# torch warns if there are more workers than cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def plan_of(**plan):
    return BatchPlan(**({"global_batch_size": 4, "total_steps": 5, "seed": 1} | plan))


def loaded(source, views=VIEWS, **plan):
    return list(training_batches(source, views, plan_of(**plan), num_workers=0))


def rendered(images, views=VIEWS, *, num_workers=0, in_batches=True, **plan):
    device = torch.device("cpu") if in_batches else None
    plan = plan_of(**plan)
    return list(resident_batches(images, views, plan, num_workers=num_workers, render_on=device))


def assert_same_draws(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.views.shape == other.views.shape
        assert one.views.dtype == torch.uint8
        assert one.broken == other.broken
        for name in ("indices", "epochs", "crops", "flips"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def difference(ours, theirs):
    """Return the differences of all pixels of two lists of batches."""
    pairs = [
        (one.views.float(), other.views.float()) for one, other in zip(ours, theirs, strict=True)
    ]
    return torch.cat([(one - other).flatten() for one, other in pairs])


VARIANTS = {
    "default": VIEWS,
    "oblong": dataclasses.replace(VIEWS, image_size=(20, 36)),
    "smaller at first": dataclasses.replace(VIEWS, early=EarlyViews(image_size=16, steps=4)),
    "vertical flips": dataclasses.replace(
        VIEWS, first=dataclasses.replace(VIEWS.first, vertical_flip_probability=0.5)
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_of_full_size_give_the_loaders_views(pictures, resident, variant):
    source, views = pictures(), VARIANTS[variant]
    ours = rendered(resident(source), views, total_steps=9)
    theirs = loaded(source, views, total_steps=9)
    assert_same_draws(ours, theirs)
    found = difference(ours, theirs)
    near = (found.abs() <= 2).float().mean()
    assert near > 0.9, "the rest: hue and saturation of 8 bits, and solarized edges"
    assert found.abs().mean() < 1.5
    assert abs(found.mean()) < 0.3


def test_in_host_memory_the_views_are_the_loaders(pictures, resident):
    source = pictures(12)
    images = resident(source)
    theirs = loaded(source)
    for num_workers in (0, 2):
        ours = rendered(images, in_batches=False, num_workers=num_workers)
        assert_same_draws(ours, theirs)
        assert not difference(ours, theirs).any()


@pytest.mark.parametrize("in_batches", [True, False])
def test_reduced_images_give_the_same_draws_and_statistics(pictures, resident, in_batches):
    source = pictures(12, scale=3)
    images = resident(source, side=40)
    ours = rendered(images, in_batches=in_batches, total_steps=12)
    theirs = loaded(source, total_steps=12)
    assert_same_draws(ours, theirs)
    assert difference(ours, theirs).abs().mean() < 4
    for statistic in (torch.mean, torch.std):
        mine, others = (
            statistic(torch.cat([batch.views for batch in batches]).float(), (0, 3, 4))
            for batches in (ours, theirs)
        )
        assert (mine - others).abs().max() < 1.5


@pytest.mark.parametrize("num_workers", [1, 3])
def test_views_do_not_depend_on_workers_and_parts(pictures, resident, num_workers, monkeypatch):
    images = resident(pictures())
    alone = rendered(images)
    with_workers = rendered(images, num_workers=num_workers)
    assert not difference(with_workers, alone).any()
    monkeypatch.setitem(resident_module._PIXELS_AT_ONCE, "cpu", 3 * 24 * 24)
    in_parts = rendered(images)
    assert difference(in_parts, alone).abs().max() <= 1, "sums of other lengths"
    assert_same_draws(in_parts, alone)


@pytest.mark.parametrize("in_batches", [True, False])
def test_a_resumed_run_continues_with_the_same_batches(pictures, resident, in_batches):
    images = resident(pictures())
    whole = rendered(images, in_batches=in_batches, total_steps=8)
    rest = rendered(images, in_batches=in_batches, total_steps=8, start_step=3)
    assert_same_draws(rest, whole[3:])
    assert not difference(rest, whole[3:]).any()


def test_processes_render_the_parts_of_one_global_batch(pictures, resident):
    images = resident(pictures(20))
    plan = {"global_batch_size": 8, "accumulation_steps": 2}
    whole = rendered(images, **plan)
    parts = [rendered(images, **plan, rank=rank, world_size=2) for rank in range(2)]
    for one, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(one.indices, torch.cat([half.indices for half in halves]))
        both = torch.cat([half.views for half in halves])
        assert (one.views.float() - both.float()).abs().max() <= 1


@pytest.mark.parametrize("in_batches", [True, False])
def test_a_broken_image_is_named_and_replaced_by_the_next(pictures, resident, in_batches):
    source = pictures(8, broken=(2, 3))
    ours = rendered(resident(source), in_batches=in_batches, total_steps=2)
    assert_same_draws(ours, loaded(source, total_steps=2))
    assert {name for batch in ours for name, _ in batch.broken} == {"image 2", "image 3"}


def test_only_broken_images_is_an_error(pictures, resident):
    images = resident(pictures(8, broken=tuple(range(8))))
    with pytest.raises(
        DataError, match="none of 8 images that were tried can be decoded, the first is image"
    ):
        rendered(images)


def test_images_of_other_bands(resident):
    from pcd_hub.data.multiband.image import BandImage

    class Bands:
        def __init__(self):
            rng = np.random.default_rng(0)
            small = rng.integers(0, 256, (12, 6, 7, 5), dtype=np.uint8)
            self.images = [BandImage.from_array(one).resize((40, 50)) for one in small]

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index]

        def read(self, index, to_image):
            return to_image(self.images[index])

        def name(self, index):
            return str(index)

        def fingerprint(self):
            return "bands"

    source = Bands()
    views = dataclasses.replace(VIEWS, num_bands=5, colours=(2, 1, 0))
    ours, theirs = rendered(resident(source, num_bands=5), views), loaded(source, views)
    assert_same_draws(ours, theirs)
    assert difference(ours, theirs).abs().mean() < 1.5


def test_threads_keep_the_order_and_pass_errors_on():
    found = list(in_threads(lambda x: x * x, range(50), num_threads=3, ahead=2))
    assert found == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // (5 - x), range(50), num_threads=2, ahead=2))


def test_threads_end_with_the_iterator():
    results = in_threads(lambda x: x, iter(int, 1), num_threads=2, ahead=2)
    next(results)
    started = [one for one in threading.enumerate() if one.name.startswith("resident")]
    results.close()
    for thread in started:
        thread.join(10)
    assert started
    assert not any(thread.is_alive() for thread in started)
