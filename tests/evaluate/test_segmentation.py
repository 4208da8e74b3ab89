import pytest
import timm
import torch

from pcd_hub.evaluate.segmentation import IGNORE, LabelledImages, StageFeatures, linear_probe


def halves(count: int) -> LabelledImages:
    """Left dark, right bright, at random contrast; a stripe without label between them."""
    masks = torch.zeros(count, 16, 16, dtype=torch.uint8)
    masks[..., 8:] = 1
    images = (
        masks.float()[:, None].expand(-1, 3, -1, -1) * 150 + torch.rand(count, 3, 16, 16) * 50
    ).byte()
    masks[..., 7:9] = IGNORE
    return LabelledImages(images=images, masks=masks)


def test_separable_classes_are_separated():
    result = linear_probe(
        lambda images: images.float() / 255, halves(20), halves(10), num_classes=3, steps=300
    )
    assert result.mean_iou > 0.99
    assert result.pixel_accuracy > 0.99
    assert result.class_iou[2] != result.class_iou[2], "the class that never occurs is NaN"
    assert result.predictions.shape == (10, 16, 16)


def test_features_without_information_score_like_a_constant():
    result = linear_probe(
        lambda images: torch.ones(len(images), 4, 4, 4), halves(20), halves(10), num_classes=2
    )
    assert result.mean_iou == pytest.approx(0.25, abs=0.01)


def test_the_same_seed_gives_the_same_score():
    scores = {
        linear_probe(
            lambda i: i.float(), halves_fixed, halves_fixed, num_classes=2, steps=5, seed=3
        ).mean_iou
        for halves_fixed in [halves(6)] * 2
    }
    assert len(scores) == 1


def test_stage_features_are_the_last_stages_on_the_finest_grid():
    model = timm.create_model("test_resnet", num_classes=0)
    features = StageFeatures(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    maps = features(images)
    assert not model.training
    with torch.no_grad():
        stages = model.forward_intermediates(
            (images / 255 - 0.5) / 0.25, indices=3, intermediates_only=True
        )
    assert maps.shape == (2, sum(s.shape[1] for s in stages), *stages[0].shape[2:])
    assert torch.equal(maps[:, : stages[0].shape[1]], stages[0])
