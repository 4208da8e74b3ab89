import numpy as np
from PIL import Image

from pcd_hub.report.detections import (
    DrawnObject,
    Panel,
    category_colour,
    save_detection_panels,
)


def test_boxes_and_masks_are_drawn_in_the_colour_of_their_category(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[20:30, 30:50] = 1
    colour = category_colour(2)
    drawn = DrawnObject(label="disc", box=(30, 20, 20, 10), colour=colour, mask=mask)
    panels = [[Panel(title="truth", objects=[drawn]), Panel(title="found", objects=[])]]
    save_detection_panels(tmp_path / "new" / "a.png", [image], panels)
    pixels = np.asarray(Image.open(tmp_path / "new" / "a.png").convert("RGB"))
    tint = np.round(0.45 * 255 * colour)
    inside = (np.abs(pixels - tint) <= 1).all(2)
    left, right = np.split(inside, 2, axis=1)
    assert left.sum() > 1000
    assert not right.any(), "the second panel has no object"


def test_equal_figures_are_equal_files(tmp_path):
    image = np.full((8, 8, 3), 90, np.uint8)
    for name in ("a.png", "b.png"):
        save_detection_panels(tmp_path / name, [image], [[Panel(title="", objects=[])] * 2])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
