import numpy as np
import pytest

from pcd_hub.data.multiband.reading import BandReader
from pcd_hub.data.multiband.source import BandSource
from pcd_hub.data.multiband.statistics import band_statistics
from pcd_hub.data.sources.open import open_source
from pcd_hub.errors import DataError


def arrays(folder, images, bands, value_range=None):
    for number, values in enumerate(images):
        np.save(folder / f"{number:02}.npy", values)
    names = "".join(f"{number:02}.npy\n" for number in range(len(images)))
    (folder / "list.txt").write_text(names)
    return BandSource(open_source(str(folder / "list.txt")), BandReader(bands, value_range))


def test_known_bands_have_imagenets_values_and_others_their_own(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(51, 103, (20, 20, 4)).astype(np.uint8) for _ in range(8)]
    bands = ("nir", "red", "green", "blue")
    mean, std = band_statistics(arrays(tmp_path, images, bands), bands)
    assert (mean[1:], std[1:]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = np.stack(images)[..., 0] / 255
    assert mean[0] == pytest.approx(expected.mean(), abs=1e-4)
    assert std[0] == pytest.approx(expected.std(), abs=1e-4)


def test_every_image_counts_the_same_and_broken_ones_not(tmp_path):
    images = [np.full((2, 2), 0, np.uint8), np.full((40, 40), 255, np.uint8), np.zeros((2, 2, 9))]
    assert band_statistics(arrays(tmp_path, images, ("sar",)), ("sar",)) == ((0.5,), (0.5,))


def test_a_range_that_is_hardly_used_is_warned_of(tmp_path, caplog):
    images = [np.full((4, 4), 4000, np.uint16)]
    mean, std = band_statistics(arrays(tmp_path, images, ("sar",)), ("sar",))
    assert "the values of 1 of 1 images are at most 16 of 255 after scaling (but" in caplog.text
    assert "0.1 %); set --data.band-range to the range of the data set" in caplog.text
    assert std == (0.02,), "a constant band is not divided by 0"
    assert mean == (pytest.approx(16 / 255, abs=1e-4),)


def test_one_bright_pixel_does_not_hide_a_range_that_is_hardly_used(tmp_path, caplog):
    values = np.random.default_rng(0).integers(300, 2500, (8, 72, 80, 4)).astype(np.uint16)
    values[:, 5, 5] = 12_000
    bands = ("red", "green", "blue", "nir")
    band_statistics(arrays(tmp_path, list(values), bands), bands)
    assert "the values of 8 of 8 images are at most 10 of 255 after scaling" in caplog.text


def test_a_few_dark_images_are_no_wrong_range(tmp_path, caplog):
    values = np.random.default_rng(0).integers(0, 256, (20, 8, 8)).astype(np.uint8)
    values[:2] = 0
    band_statistics(arrays(tmp_path, list(values), ("sar",)), ("sar",))
    assert not caplog.text


def test_images_of_two_ranges_in_one_set_are_warned_of(tmp_path, caplog):
    rng = np.random.default_rng(0)
    bytes_ = [rng.integers(0, 256, (20, 20, 1)).astype(np.uint8) for _ in range(4)]
    shorts = [rng.integers(0, 4096, (20, 20, 1)).astype(np.uint16) for _ in range(3)]
    band_statistics(arrays(tmp_path, bytes_ + shorts, ("sar",)), ("sar",))
    assert "the values of 3 of 7 images are at most 16 of 255" in caplog.text


def test_values_beyond_the_range_are_warned_of_by_their_band(tmp_path, caplog):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, (6, 20, 20, 3)).astype(np.uint16)
    values[..., 1] *= 4
    bands = ("vv", "vh", "mask")
    values[..., 2] = np.where(values[..., 2] > 500, 1000, 0)
    band_statistics(arrays(tmp_path, list(values), bands, (0.0, 1000.0)), bands)
    assert "75 % of the values of vh are at the end of the range or beyond it; set" in caplog.text
    caplog.clear()
    values[..., 1] //= 4
    band_statistics(arrays(tmp_path, list(values), bands, (0.0, 1000.0)), bands)
    assert not caplog.text, "of a mask, many values are at the end"
    values[..., 0] += 2000
    band_statistics(arrays(tmp_path, list(values), bands, (0.0, 1000.0)), bands)
    assert "100 % of the values of vv are at the end of the range" in caplog.text


def test_a_sample_without_a_readable_image_is_an_error(tmp_path):
    with pytest.raises(DataError, match="none of the first images can be read: .*expected height"):
        band_statistics(arrays(tmp_path, [np.zeros((2, 2, 9), np.uint8)], ("sar",)), ("sar",))
