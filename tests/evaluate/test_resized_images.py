"""A labelled set as images of one size."""

import pytest
import torch
from PIL import Image

from pcd_hub.data.labelled.segmentation import open_segmentation
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.errors import DataError
from pcd_hub.evaluate.resized_images import resized_images


def test_a_mask_is_decoded_once_and_never_without_its_image(segmentation, monkeypatch):
    decoded, mask = [], SegmentationSet.mask
    monkeypatch.setattr(SegmentationSet, "mask", lambda s, row: decoded.append(row) or mask(s, row))
    opened = open_segmentation(str(segmentation), "val")
    resized = resized_images(opened, 16, resize_masks=True, num_workers=0)
    assert resized.images[[0, 1]].shape == resized.images[[1, 0]].shape == (2, 3, 16, 16)
    assert resized.masks[0].shape == resized.masks[2].shape == (16, 16)
    assert decoded == [0, 1, 2]
    Image.new("L", (9, 9)).save(segmentation / "masks" / "val" / "3.png")
    for read in (lambda: resized.images[[3]], lambda: resized.masks[3]):
        with pytest.raises(DataError, match=r"3.png 9 x 9"):
            read()


@pytest.mark.parametrize("resize_masks", [True, False])
def test_workers_read_the_same_images_and_masks(segmentation, monkeypatch, resize_masks):
    rows = [[4, 0, 4], [1], [3, 2, 0]]
    opened = open_segmentation(str(segmentation), "val")
    here, by_workers = (
        resized_images(opened, 16, resize_masks=resize_masks, num_workers=count) for count in (0, 2)
    )
    batches = [list(each.images.batches(rows)) for each in (here, by_workers)]
    assert all(map(torch.equal, *batches))
    monkeypatch.setattr(SegmentationSet, "pair", None)  # all masks are in memory
    assert all(torch.equal(here.masks[row], by_workers.masks[row]) for row in range(5))
    assert by_workers.masks[1].shape == ((16, 16) if resize_masks else (32, 40))
