import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.data.sources.open import open_source
from pcd_hub.errors import DataError
from pcd_hub.train.held_out import images as module
from pcd_hub.train.held_out.images import CentreCrop, read_crops
from tests.train.conftest import image_folder


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_crop_has_the_shape_of_a_view_and_keeps_the_proportions(tmp_path, suffix):
    """A centred square stays a square in a view of another shape."""
    pixels = np.zeros((600, 800, 3), np.uint8)
    pixels[200:400, 300:500] = 255
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    for number in range(2):
        Image.fromarray(pixels).save(tmp_path / f"b{number}.{suffix}")
    crops = read_crops(open_source(str(tmp_path)), size=(42, 56), num_workers=0)
    assert crops.shape == (3, 3, 42, 56)
    bright = (crops[0].float().mean(0) > 127).nonzero()
    height, width = (bright.max(0).values - bright.min(0).values + 1).tolist()
    assert height == width == pytest.approx(200 * 42 / (600 * 7 / 8), abs=1)
    assert bright.float().mean(0).tolist() == pytest.approx([20.5, 27.5], abs=0.6)


def test_a_large_jpeg_is_decoded_no_larger_than_needed(tmp_path, monkeypatch):
    Image.new("RGB", (1600, 1600), (9, 99, 199)).save(tmp_path / "a.jpg")
    sizes = []
    decoded = module.decoded
    monkeypatch.setattr(module, "decoded", lambda image: sizes.append(image.size) or decoded(image))
    open_source(str(tmp_path)).read(0, CentreCrop(height=96, width=96))  # type: ignore
    assert sizes == [(200, 200)]


def test_broken_images_are_left_out_with_a_warning(tmp_path, caplog):
    source = open_source(str(image_folder(tmp_path / "images", 6, broken=2)))
    assert len(read_crops(source, size=(16, 16), num_workers=1)) == 4
    assert "2 of 6 held-out images are broken" in caplog.text
    assert "0000.png" in caplog.text


def test_one_readable_image_is_refused(tmp_path):
    source = open_source(str(image_folder(tmp_path / "images", 4, broken=3)))
    with pytest.raises(DataError, match="1 of 4 held-out images can be read .*--data.held-out 0"):
        read_crops(source, size=(16, 16), num_workers=0)


def test_very_large_crops_are_fewer(tmp_path, monkeypatch):
    source = open_source(str(image_folder(tmp_path / "images", 9, broken=0)))
    monkeypatch.setattr(module, "MAX_BYTES", 5 * 3 * 16 * 16)
    assert len(read_crops(source, size=(16, 16), num_workers=0)) == 5
    assert torch.equal(
        read_crops(source, size=(16, 16), num_workers=0)[4, 0],
        torch.full((16, 16), 4, dtype=torch.uint8),
    )
