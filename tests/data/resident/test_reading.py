import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.data.decoding import as_rgb, decode
from pcd_hub.data.multiband.image import BandImage
from pcd_hub.data.resident import reading
from pcd_hub.errors import DataError

# torch warns if there are more workers than cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Encoded:
    """A source of encoded images."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.read(index, as_rgb)

    def read(self, index, to_image):
        return decode({"bytes": self.files[index], "path": None}, f"image {index}", to_image)

    def name(self, index):
        return str(index)

    def fingerprint(self):
        return "encoded"


def encoded(size, form, **options):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_are_kept_as_they_are_decoded(pictures, resident, num_workers):
    source = pictures(40)
    images = resident(source, num_workers=num_workers)
    assert len(images) == 40
    for index in range(40):
        assert images.image(index).tobytes() == source.images[index].tobytes()
        assert tuple(images.table.full_sizes[index]) == source.images[index].size


def test_every_image_is_decoded_once(pictures, resident):
    source = pictures(40)
    decoded = []
    source.read = partial(_noting, source, decoded)
    resident(source)
    assert decoded == list(range(40))


def _noting(source, decoded, index, to_image):
    if isinstance(to_image, reading._Keep):
        decoded.append(index)
    return to_image(source.images[index])


def test_larger_images_are_reduced_to_the_side(pictures, resident):
    source = pictures()
    images = resident(source, side=50)
    sizes = images.table.sizes
    assert (sizes.min(1) == np.minimum(50, images.table.full_sizes.min(1))).all()
    ratio = (
        sizes[:, 0] / sizes[:, 1] * images.table.full_sizes[:, 1] / images.table.full_sizes[:, 0]
    )
    assert np.abs(ratio - 1).max() < 0.02
    assert np.array_equal(images.table.starts, np.cumsum(3 * sizes.prod(1)) - 3 * sizes.prod(1)), (
        "one after the other"
    )


def test_rotated_jpegs_are_kept_upright_and_decoded_smaller(resident):
    exif = Image.Exif()
    exif[274] = 6
    plain, rotated = encoded((400, 240), "JPEG"), encoded((400, 240), "JPEG", exif=exif)
    images = resident(Encoded([plain, rotated, encoded((30, 20), "PNG")]), side=60)
    assert images.table.full_sizes.tolist() == [[400, 240], [240, 400], [30, 20]]
    assert images.table.sizes.tolist() == [[100, 60], [60, 100], [30, 20]]
    turned = images.image(0).transpose(Image.Transpose.ROTATE_270)
    difference = np.asarray(turned, float) - np.asarray(images.image(1), float)
    assert np.abs(difference).mean() < 3


def test_a_broken_image_is_named_and_replaced_by_the_next(resident):
    good = encoded((40, 30), "PNG")
    images = resident(Encoded([good, b"no image", good]))
    assert images.table.readable(0) == (0, [])
    index, broken = images.table.readable(1)
    assert index == 2
    ((name, reason),) = broken
    assert name == "image 1"
    assert "cannot identify image file" in reason


def test_only_broken_images_are_an_error(resident):
    images = resident(Encoded([b"no image"] * 40))
    with pytest.raises(
        DataError, match="none of 32 images that were tried can be decoded, the first is image 3"
    ):
        images.table.readable(3)


def test_the_buffer_grows_if_the_estimate_is_too_small(pictures, resident, monkeypatch):
    monkeypatch.setattr(reading, "estimate_bytes", lambda *_: 10_000)
    source = pictures(40)
    images = resident(source)
    assert images.image(39).tobytes() == source.images[39].tobytes()
    end = int(images.table.starts[-1] + 3 * images.table.sizes[-1].prod())
    assert torch.equal(images.pixels[end:], torch.zeros(3 * int(images.table.sizes[:, 0].max())))


def test_bands_are_kept(resident):
    class Bands(Encoded):
        def read(self, index, to_image):
            return to_image(self.files[index])

    rng = np.random.default_rng(0)
    source = Bands(
        [
            BandImage.from_array(rng.integers(0, 256, (9, 7 + n, 5), dtype=np.uint8))
            for n in range(3)
        ]
    )
    images = resident(source, num_bands=5)
    for index, image in enumerate(source.files):
        assert np.array_equal(np.asarray(images.image(index)), np.asarray(image))
