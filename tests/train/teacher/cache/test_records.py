from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pcd_hub.train.teacher.cache.records import RecordFormat

CPU = torch.device("cpu")


def made(count=3, *, channels=64, bands=3, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = scale * torch.randn(2 * count, channels, 2, 3, generator=generator)
    views = torch.randint(0, 256, (count, 2, bands, 24, 32), generator=generator)
    return RecordFormat(channels=channels, height=2, width=3, bands=bands), maps, views.byte()


@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("channels", [1, 3, 64])
def test_a_record_returns_the_maps_with_the_error_of_eight_bits(channels, bands):
    record_format, maps, views = made(channels=channels, bands=bands)
    rows = record_format.encode(maps, views)
    assert rows.shape == (3, record_format.num_bytes)
    found = record_format.decode(rows, CPU)
    step = maps.abs().amax(1, keepdim=True) / 127
    assert ((found - maps).abs() <= 0.5001 * step).all()
    assert found.shape == maps.shape


def test_float16_keeps_small_channels_beside_large_ones():
    record_format, maps, views = made()
    maps[:, 0] *= 1000
    exact = replace(record_format, values="float16")
    assert exact.num_bytes > record_format.num_bytes
    found = exact.decode(exact.encode(maps, views), CPU)
    torch.testing.assert_close(found, maps, rtol=2e-3, atol=1e-3)
    found = record_format.decode(record_format.encode(maps, views), CPU)
    assert (found[:, 1:] - maps[:, 1:]).abs().max() > 1


def test_the_direction_of_a_vector_is_kept():
    record_format, maps, views = made(channels=1280)
    found = record_format.decode(record_format.encode(maps, views), CPU)
    assert F.cosine_similarity(found, maps, dim=1).min() > 0.9999


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_vectors_of_any_length_are_finite(scale):
    record_format, maps, views = made(scale=scale)
    found = record_format.decode(record_format.encode(maps, views), CPU)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, maps, rtol=0.02, atol=0.02 * scale)


def test_bfloat16_maps_are_kept():
    record_format, maps, views = made()
    rows = record_format.encode(maps.bfloat16(), views)
    torch.testing.assert_close(record_format.decode(rows, CPU), maps, rtol=0.05, atol=0.05)


def test_a_record_knows_the_views_it_was_made_from():
    record_format, maps, views = made()
    rows = record_format.encode(maps, views)
    nearly = (views.int() + 3).clamp(0, 255).byte()
    assert record_format.shows(rows, views).all()
    assert record_format.shows(rows, nearly).all(), "another version of an image library"
    assert not record_format.shows(rows, views.roll(1, 0)).any()
    assert not record_format.shows(rows, views.flip(1)).any(), "the views in another order"
    one_other = views.clone()
    one_other[1] = 255 - one_other[1]
    assert record_format.shows(rows, one_other).tolist() == [True, False, True]


def test_records_are_bytes():
    record_format, maps, views = made()
    assert record_format.encode(maps, views).dtype == np.uint8
