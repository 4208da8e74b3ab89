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
    assert "the largest value of 1 images is 16 of 255 after scaling; set --data.band-range" in (
        caplog.text
    )
    assert std == (0.02,), "a constant band is not divided by 0"
    assert mean == (pytest.approx(16 / 255, abs=1e-4),)


def test_a_sample_without_a_readable_image_is_an_error(tmp_path):
    with pytest.raises(DataError, match="none of the first images can be read: .*expected height"):
        band_statistics(arrays(tmp_path, [np.zeros((2, 2, 9), np.uint8)], ("sar",)), ("sar",))
