import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.resident.reading import read_images
from pcd_hub.data.scenes import render_scene


class Pictures:
    """Scenes of different sizes and shapes; some are broken. It counts what is read."""

    def __init__(self, count=12, broken=(), scale=1):
        self.broken, self.reads = broken, []
        self.images = []
        for number in range(count):
            size = (scale * (60 + 7 * (number % 9)), scale * (90 - 3 * (number % 13)))
            scene = Image.fromarray(render_scene(0, number, size=64).image)
            self.images.append(scene.resize(size, Image.Resampling.BICUBIC))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.read(index, lambda image: image)

    def read(self, index, to_image):
        self.reads.append(index)
        if index in self.broken:
            raise BrokenImageError(f"image {index}", "for the test")
        return to_image(self.images[index])

    def name(self, index):
        return str(index)

    def fingerprint(self):
        return "pictures"


@pytest.fixture
def pictures():
    return Pictures


@pytest.fixture
def resident():
    def read(source, side=1000, **options):
        options = {"num_bands": 3, "device": torch.device("cpu"), "num_workers": 0} | options
        return read_images(source, side=side, **options)

    return read


@pytest.fixture
def photo():
    """A smooth picture with noise, colours and dark and bright parts."""
    rng = np.random.default_rng(0)
    scene = Image.fromarray(render_scene(0, 3, size=128).image)
    noise = rng.integers(-20, 20, (128, 128, 3))
    return np.clip(np.asarray(scene).astype(int) + noise, 0, 255).astype(np.uint8)
