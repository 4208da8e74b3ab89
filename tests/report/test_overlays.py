import numpy as np
from PIL import Image

from pcd_hub.data.labelled.segmentation import open_segmentation
from pcd_hub.report.overlays import class_colours, save_sample_overlays
from tests.evaluate.drawn_sets import draw_segmentation


def test_predictions_are_drawn_for_evenly_spaced_images(tmp_path):
    images = open_segmentation(str(draw_segmentation(tmp_path)), "val")
    requested = []

    def predict(row, image):
        requested.append(row)
        return np.full(image.size[::-1], 255, np.uint8)

    save_sample_overlays(tmp_path / "new" / "a.png", images, {"net": predict}, count=3)
    assert requested == [0, 2, 4]
    with Image.open(tmp_path / "new" / "a.png") as figure:
        assert figure.size[0] > 300


def test_every_class_has_its_own_colour():
    assert len(np.unique(class_colours(150), axis=0)) == 150
