import io
import sys

import numpy as np
import pytest
from PIL import Image

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.multiband.image import BandImage
from pcd_hub.data.multiband.reading import BandReader
from pcd_hub.data.multiband.source import BandSource
from pcd_hub.data.scenes import render_scene
from pcd_hub.data.sources.open import open_source
from pcd_hub.errors import DataError

FOUR = ("red", "green", "blue", "nir")
VALUES = np.random.default_rng(0).integers(0, 256, (6, 8, 4)).astype(np.uint8)


def source(folder, bands=FOUR, value_range=None):
    low_high = None if value_range is None else (float(value_range[0]), float(value_range[1]))
    return BandSource(open_source(str(folder)), BandReader(bands, low_high))


def npy(folder, values):
    """A list of one array."""
    np.save(folder / "a.npy", values)
    (folder / "list.txt").write_text("a.npy\n")
    return folder / "list.txt"


def pixels(image):
    return np.asarray(image)


def test_rgba_files_are_four_bands_if_four_are_named(tmp_path):
    Image.fromarray(VALUES, "RGBA").save(tmp_path / "a.png")
    image = source(tmp_path)[0]
    assert isinstance(image, BandImage)
    assert (image.size, image.width, image.height) == ((8, 6), 8, 6)
    assert np.array_equal(pixels(image), VALUES)


@pytest.mark.parametrize("options", [{}, {"planarconfig": "separate"}, {"compression": "zlib"}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_files_of_four_bands(tmp_path, options, dtype):
    tifffile = pytest.importorskip("tifffile")
    values = VALUES.astype(dtype)
    stored = np.moveaxis(values, -1, 0) if "planarconfig" in options else values
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", **options)
    assert np.array_equal(pixels(source(tmp_path, value_range=(0, 255))[0]), VALUES)


@pytest.mark.parametrize(
    ("dtype", "value_range", "factor"),
    [(np.uint8, None, 1), (np.uint16, None, 257), (np.float64, (0.0, 1.0), 1 / 255)],
)
def test_values_are_scaled_by_one_range(tmp_path, dtype, value_range, factor):
    values = (VALUES.astype(np.float64) * factor).astype(dtype)
    image = source(npy(tmp_path, values), value_range=value_range)[0]
    assert np.array_equal(pixels(image), VALUES)


def test_values_out_of_range_are_clipped_and_missing_ones_are_0(tmp_path):
    values = np.asarray([[-5.0, 10.0], [20.0, np.nan]])
    image = source(npy(tmp_path, values), ("sar",), (0.0, 10.0))[0]
    assert pixels(image)[..., 0].tolist() == [[0, 255], [255, 0]]


def test_the_brightness_of_an_image_does_not_depend_on_its_own_range(tmp_path):
    dark = source(npy(tmp_path, np.full((4, 4, 4), 100, np.uint16)), value_range=(0, 1000))[0]
    assert (pixels(dark) == 26).all()


def test_floats_need_a_range_which_ends_the_run(tmp_path):
    with pytest.raises(DataError, match="type float32, from 0.*set --data.band-range") as refused:
        source(npy(tmp_path, VALUES.astype(np.float32)))[0]
    assert not isinstance(refused.value, BrokenImageError)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (VALUES[..., :3], "6 x 8 x 3: expected height x width x 4"),
        (VALUES[..., 0], "6 x 8 x 1: expected height x width x 4"),
        (VALUES[None], "1 x 6 x 8 x 4: expected"),
    ],
)
def test_another_number_of_bands_is_a_broken_image(tmp_path, values, reason):
    with pytest.raises(BrokenImageError, match=reason):
        source(npy(tmp_path, values))[0]


def test_pickled_arrays_are_not_loaded(tmp_path):
    with pytest.raises(BrokenImageError, match="cannot be loaded|allow_pickle|Python objects"):
        source(npy(tmp_path, np.asarray([{"a": 1}], object)))[0]


def test_huge_arrays_are_not_read(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 4)}
    )
    (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(100))
    (tmp_path / "list.txt").write_text("a.npy\n")
    with pytest.raises(BrokenImageError):
        source(tmp_path / "list.txt")[0]


def test_gray_is_what_rgb_images_are_in_gray(tmp_path):
    photo = Image.fromarray(render_scene(0, 0, size=32).image)
    photo.save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "b.png")
    images = source(tmp_path, ("gray",))
    assert np.array_equal(pixels(images[0])[..., 0], np.asarray(photo.convert("L")))
    assert (pixels(images[1]) == 255).all()
    assert np.array_equal(np.asarray(images[0].visible())[..., 1], pixels(images[0])[..., 0])


def test_without_tifffile_the_extra_is_named(tmp_path, monkeypatch):
    Image.fromarray(VALUES[..., :3]).save(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r'pip install ".\[bands\]"'):
        source(tmp_path)[0]


def test_generated_scenes_have_no_such_bands():
    with pytest.raises(DataError, match="use files"):
        source("scenes:4")[0]


@pytest.mark.parametrize(
    ("values", "nodata", "value_range"),
    [
        (VALUES.astype(np.uint16) * 16, 65535, (0, 4080)),
        (VALUES.astype(np.uint16) * 257, 65535, None),
        (VALUES / 255 * 30 - 30, 0.0, (-30, 0)),
        (VALUES.astype(np.int16) - 128, -9999, (-128, 127)),
    ],
    ids=["uint16", "uint16 of its own range", "decibels", "int16"],
)
def test_nodata_is_black(tmp_path, values, nodata, value_range):
    tifffile = pytest.importorskip("tifffile")
    stored = values.copy()
    stored[:2] = nodata
    tag = (42113, "s", 0, str(nodata), True)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", extratags=[tag])
    expected = VALUES.copy()
    expected[:2] = 0
    expected[stored == nodata] = 0
    assert np.array_equal(pixels(source(tmp_path, value_range=value_range)[0]), expected)


def test_infinity_is_black(tmp_path):
    values = VALUES.astype(np.float32)
    values[0, :3, 0] = (np.nan, np.inf, -np.inf)
    expected = VALUES.copy()
    expected[0, :3, 0] = 0
    image = source(npy(tmp_path, values), value_range=(0, 255))[0]
    assert np.array_equal(pixels(image), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4, 4), np.nan), "no value is finite; remove the image"),
        (np.zeros((4, 4, 4), np.complex64), "complex values: expected real ones"),
        (np.zeros((0, 4, 4), np.float32), "an array of 0 x 4 x 4: expected height x width x 4"),
    ],
)
def test_values_that_are_no_image_are_named(tmp_path, values, message):
    with pytest.raises(BrokenImageError, match=message):
        source(npy(tmp_path, values), value_range=(0, 255))[0]
