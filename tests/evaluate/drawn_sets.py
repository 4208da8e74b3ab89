"""Small labelled sets, drawn on the spot."""

from pathlib import Path

import numpy as np
from PIL import Image


def _disc(rng, size):
    """A bright disc on dark noise, and its mask."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    y, x = rng.uniform(8, 24), rng.uniform(10, 30)
    inside = ((rows - y) / 9) ** 2 + ((columns - x) / 9) ** 2 < 1
    image = rng.integers(0, 60, (*inside.shape, 3)) + 170 * inside[..., None]
    return Image.fromarray(image.astype(np.uint8)), Image.fromarray(inside.astype(np.uint8))


def draw_segmentation(folder: Path) -> Path:
    """12 training and 5 test images of two sizes, with classes "ground" and "disc"."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for number in range(count):
            drawn = _disc(rng, size=(40, 32) if number % 2 else (32, 44))
            for kind, picture in zip(("images", "masks"), drawn, strict=True):
                path = folder / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    (folder / "classes.json").write_text('{"classes": ["ground", "disc"], "ignore_index": 255}')
    return folder


def draw_classes(folder: Path) -> Path:
    """16 training and 12 test images of the classes "dark" and "light"."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 6)):
        for name, level in (("dark", 40), ("light", 190)):
            for number in range(count):
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(level, level + 40, (30, 36, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder
