"""A tiny data set in COCO's format, drawn: bright squares and dark bars on noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pcd_hub.data.labelled.coco import CocoSplit, read_split

WIDTH, HEIGHT = 64, 48
CATEGORIES = {3: "square", 17: "bar"}
"""With a gap, as COCO's own."""


def draw_coco(root: Path, *, train: int = 6, val: int = 4, masks: bool = True) -> Path:
    """Two splits. The last picture of each is empty; the first also holds a crowd."""
    for seed, (split, count) in enumerate({"train": train, "val": val}.items()):
        random = np.random.default_rng(seed)
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
        }
        (root / "images" / split).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(90, 140, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            boxes = {} if number == count - 1 else _draw(pixels, random)
            name = f"{number}.png"
            Image.fromarray(pixels).save(root / "images" / split / name)
            content["images"].append(
                {"id": 100 + number, "file_name": name, "width": WIDTH, "height": HEIGHT}
            )
            for category, box in boxes.items():
                content["annotations"].append(
                    _annotation(len(content["annotations"]), 100 + number, category, box, masks)
                )
        content["annotations"].append(_crowd(len(content["annotations"]), 100, masks))
        (root / "annotations").mkdir(exist_ok=True)
        write(root, split, content)
    return root


def read(root: Path, split: str = "train") -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def read_drawn(root: Path, split: str = "train", **options: Any) -> CocoSplit:
    file = root / "annotations" / f"instances_{split}.json"
    return read_split(file, root / "images" / split, **options)


def write(root: Path, split: str, content: object) -> None:
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _draw(pixels: np.ndarray, random: np.random.Generator) -> dict[int, tuple[int, int, int, int]]:
    left, top = (int(v) for v in random.integers(0, (12, 20)))
    square = (left, top, 20, 20)
    bar = (int(random.integers(36, 40)), int(random.integers(0, 8)), 12, 36)
    for (x, y, width, height), colour in ((square, (250, 220, 40)), (bar, (10, 20, 90))):
        pixels[y : y + height, x : x + width] = colour
    return {3: square, 17: bar}


def _annotation(
    number: int, image_id: int, category: int, box: tuple[int, int, int, int], masks: bool
) -> dict[str, Any]:
    x, y, width, height = box
    right, bottom = x + width, y + height
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": list(box),
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [[x, y, right, y, right, bottom, x, bottom]] if masks else [],
    }


def _crowd(number: int, image_id: int, masks: bool) -> dict[str, Any]:
    """The lowest rows, as an uncompressed run-length code (column by column)."""
    inside = np.zeros((HEIGHT, WIDTH), np.uint8)
    inside[44:, 50:] = 1
    flat = inside.ravel(order="F")
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff(ends).tolist()
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [50, 44, 14, 4],
        "area": 56,
        "iscrowd": 1,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts} if masks else [],
    }
