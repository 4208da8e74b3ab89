import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pcd_hub.data.resident.drawing import draw_batch, split_views
from pcd_hub.data.resident.rendering import copy_windows, render_views
from pcd_hub.data.views import byol_views

VIEWS = byol_views(24, seed=0)


class Calls(TorchDispatchMode):
    """The operations that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def render(images, part, colours, **options):
    return render_views(copy_windows(images, part), part, colours, **options)


def parts_of(images, num_views=1000, views=VIEWS):
    drawn = draw_batch(images.table, views, [(0, index) for index in range(8)])
    return drawn, split_views(drawn, images.table, views.image_size, num_views=num_views)


def test_rendering_waits_for_nothing_and_loops_over_no_view(pictures, resident):
    """Values read back and constants copied would make the host wait for a GPU."""
    images = resident(pictures(8))
    counts = []
    for count in (16, 8):
        _, parts = parts_of(images, num_views=count)
        with Calls() as calls:
            render(images, parts[0], VIEWS.colours)
        counts.append(len(calls.names))
        assert not {"aten::_local_scalar_dense", "aten::nonzero"} & set(calls.names)
        assert calls.names.count("aten::lift_fresh") == 4, (
            "three arrays, and one of them for the windows"
        )
    most, fewest = max(counts), min(counts)
    assert most - fewest <= 40, "the hue, at one step more or less"
    assert most < 600


@pytest.mark.parametrize(("count", "sizes"), [(16, [16]), (6, [5, 6, 5]), (1, [1] * 16)])
def test_views_are_split_into_equal_parts(pictures, resident, count, sizes):
    images = resident(pictures(8))
    drawn, parts = parts_of(images, num_views=count)
    assert [len(part.integers) for part in parts] == sizes
    together = torch.cat([render(images, part, VIEWS.colours) for part in parts])
    assert together.shape == (16, 3, 24, 24)
    first = VIEWS.render(images.image(0), drawn.pairs[0])
    for number in range(2):
        difference = together[8 * number].float() - first[number].float()
        assert difference.abs().mean() < 2, "all first views, then all second ones"


def test_half_precision_changes_a_level_at_most_here_and_there(pictures, resident):
    """In half precision, as on a GPU, integers up to 2048 are exact."""
    images = resident(pictures(8))
    _, (part,) = parts_of(images)
    full, half = (
        render(images, part, VIEWS.colours, dtype=dtype).float()
        for dtype in (torch.float32, torch.float16)
    )
    assert ((full - half).abs() <= 2).float().mean() > 0.98, "the rest: solarized edges, and hue"
    assert (full - half).abs().mean() < 0.3
    assert abs((full - half).mean()) < 0.1


def test_views_without_blur_and_jitter(pictures, resident):
    policy = dataclasses.replace(VIEWS.first, jitter_probability=0.0, blur_probability=0.0)
    views = dataclasses.replace(VIEWS, first=policy, second=policy)
    images = resident(pictures(8))
    drawn, (part,) = parts_of(images, views=views)
    assert part.max_sigma == 0
    assert part.counts[:4] == (0, 0, 0, 0)
    rendered = render(images, part, views.colours)
    for index, pair in enumerate(drawn.pairs):
        expected = views.render(images.image(index), pair)[0]
        assert (rendered[index].float() - expected.float()).abs().max() <= 2
