"""Centre crops and the feature maps of them."""

import numpy as np
import timm
import torch
from PIL import Image

from pcd_hub.data.labelled.classification import ClassificationSet, open_classification
from pcd_hub.data.sources.open import open_source
from pcd_hub.evaluate.feature_maps import centre_crops, extract_feature_maps, feature_extractor
from pcd_hub.evaluate.models import EvaluatedModel


def test_the_centre_crop_is_seven_eighths_of_the_shorter_side(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "one.png")
    (crop,) = centre_crops(open_source(str(tmp_path)), [0], size=56, num_workers=0)
    middle = torch.from_numpy(image[4:60, 12:68]).permute(2, 0, 1)
    assert torch.equal(crop[0], middle.float() / 255)


def test_workers_read_the_same_crops(classes):
    images = open_classification(str(classes), "val")
    assert isinstance(images, ClassificationSet)
    crops = [
        torch.cat(list(centre_crops(images, [5, 0, 7], size=16, num_workers=count)))
        for count in (0, 2)
    ]
    assert torch.equal(*crops)


def test_a_map_is_the_normalised_images_through_the_model_in_eval_mode(classes):
    model = timm.create_model("test_resnet", num_classes=0).train()
    under_test = EvaluatedModel(name="net", model=model, mean=(0.5,) * 3, std=(0.25,) * 3)
    images = open_classification(str(classes), "val")
    extract = feature_extractor(under_test, 64)
    (maps,) = extract_feature_maps(extract, images, [3, 1], size=64, num_workers=0, what="images")
    assert not model.training
    crops = torch.cat(list(centre_crops(images, [3, 1], size=64, num_workers=0)))
    with torch.no_grad():
        expected = model.forward_features((crops - 0.5) / 0.25)
    torch.testing.assert_close(maps, expected)
