import pytest
import timm
import torch
import torch.nn.functional as F

from pcd_hub.data.labelled.segmentation_set import IGNORE
from pcd_hub.errors import DataError
from pcd_hub.evaluate.segmentation import LabelledImages, LinearProbe, _upsampled
from pcd_hub.evaluate.stage_features import FeatureCache, StageFeatures


def halves(count: int, contrast: int = 150) -> LabelledImages:
    """Left dark, right bright, at random contrast; a stripe without label between them."""
    masks = torch.zeros(count, 16, 16, dtype=torch.uint8)
    masks[..., 8:] = 1
    images = (
        masks.float()[:, None].expand(-1, 3, -1, -1) * contrast + torch.rand(count, 3, 16, 16) * 50
    ).byte()
    masks[..., 7:9] = IGNORE
    return LabelledImages(images=images, masks=masks)


def test_separable_classes_are_separated():
    result = LinearProbe(
        lambda images: images.float() / 255, halves(20), halves(10), num_classes=3
    ).run(steps=300)
    assert result.mean_iou > 0.99
    assert result.pixel_accuracy > 0.99
    assert result.class_iou[2] != result.class_iou[2], "the class that never occurs is NaN"
    assert [mask.shape for mask in result.predictions] == [(16, 16)] * 10


def test_features_without_information_score_like_a_constant():
    result = LinearProbe(
        lambda images: torch.ones(len(images), 4, 4, 4), halves(20), halves(10), num_classes=2
    ).run()
    assert result.mean_iou == pytest.approx(0.25, abs=0.01)


def test_a_constant_channel_changes_nothing():
    def with_constant(images):
        maps = images.float() / 255
        return torch.cat([maps, torch.ones_like(maps[:, :1])], 1)

    assert LinearProbe(with_constant, halves(20), halves(10), num_classes=2).run().mean_iou > 0.99


def test_the_same_seed_gives_the_same_score():
    scores = {
        LinearProbe(lambda i: i.float(), halves_fixed, halves_fixed, num_classes=2)
        .run(steps=5, seed=3)
        .mean_iou
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


def test_every_block_of_a_vit_goes_through_its_final_norm():
    model = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    maps = StageFeatures(model, mean=(0.5,) * 3, std=(0.25,) * 3)(images)
    with torch.no_grad():
        tokens = model.forward_features((images / 255 - 0.5) / 0.25)[:, model.num_prefix_tokens :]
    *_, last = maps.chunk(3, 1)
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens)
    for block in maps.chunk(3, 1):
        assert block.mean(1) == pytest.approx(torch.zeros(2, *maps.shape[2:]), abs=1e-5)


def small(images):
    return F.avg_pool2d(images.float() / 255, 4)


def test_maps_that_do_not_fit_are_recomputed_and_score_the_same():
    train, test = halves(20, contrast=3), halves(10, contrast=3)
    cached, recomputed = (
        LinearProbe(small, train, test, num_classes=2, cache_bytes=budget) for budget in (10**9, 1)
    )
    one, other = cached.run(steps=50), recomputed.run(steps=50)
    assert one.mean_iou == pytest.approx(other.mean_iou, abs=1e-6)
    assert 0.5 < one.mean_iou < 1
    assert FeatureCache(small, train.images, cache_bytes=20 * 3 * 4 * 4 * 4).is_cached
    assert not FeatureCache(small, train.images, cache_bytes=20 * 3 * 4 * 4 * 4 - 1).is_cached


def test_standardised_features_have_mean_0_and_deviation_1():
    images = halves(20).images
    maps = FeatureCache(small, images, cache_bytes=1)
    mean, deviation = maps.statistics()
    assert mean.flatten() == pytest.approx(small(images).mean((0, 2, 3)))
    maps.standardise(mean, deviation)
    (everything,) = map(torch.stack, maps.batches([list(range(20))]))
    assert everything.mean((0, 2, 3)) == pytest.approx(torch.zeros(3), abs=1e-5)
    assert everything.std((0, 2, 3), correction=0) == pytest.approx(torch.ones(3), abs=1e-4)


def test_other_test_images_do_not_change_a_prediction():
    """The statistics are the training set's: those of the test set would see the outliers."""
    train, test = halves(20, contrast=3), halves(4, contrast=3)
    outliers = LabelledImages(
        images=torch.cat([test.images, torch.full_like(test.images, 255)]),
        masks=torch.cat([test.masks, test.masks]),
    )
    alone, together = (
        LinearProbe(small, train, tested, num_classes=2).run(steps=5).predictions[:4]
        for tested in (test, outliers)
    )
    assert torch.stack(alone).float().mean() == pytest.approx(0.5, abs=0.3), "both classes"
    assert torch.equal(torch.stack(alone), torch.stack(together))


class Ahead:
    """Images that record which rows were requested."""

    def __init__(self, images):
        self.images, self.requested = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return self.images[rows]

    def batches(self, rows):
        self.requested += [list(rows)]
        return map(self.images.__getitem__, self.requested[-1])


@pytest.mark.parametrize("cache_bytes", [1, 10**9])
def test_images_that_can_be_are_read_ahead_and_score_the_same(cache_bytes):
    train, test = halves(20, contrast=3), halves(10, contrast=3)
    ahead = [
        LabelledImages(images=Ahead(split.images), masks=split.masks) for split in (train, test)
    ]
    one, other = (
        LinearProbe(small, *splits, num_classes=2, cache_bytes=cache_bytes).run(
            steps=7, batch_size=4
        )
        for splits in ((train, test), ahead)
    )
    assert one.mean_iou == other.mean_iou
    assert torch.equal(torch.stack(one.predictions), torch.stack(other.predictions))
    passes = [len(rows) for rows in ahead[0].images.requested]
    assert passes == ([1] if cache_bytes > 1 else [1, 7]), "features or statistics; steps"


def test_the_progress_of_every_pass_is_shown():
    shown = []

    def progress(steps, what, *, total):
        steps = list(steps)
        shown.append((what, total, len(steps)))
        return iter(steps)

    train = halves(70)
    LinearProbe(small, train, halves(3), num_classes=2, progress=progress).run(steps=5)
    assert shown == [
        ("features of training images", 2, 2),
        ("features of test images", 1, 1),
        ("statistics of training images", 2, 2),
        ("training the probe", 5, 5),
        ("predictions of test images", 1, 1),
    ]


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_logits_at_some_pixels_are_those_of_the_whole_map(stride):
    logits = torch.randn(2, 3, 5, 4)
    whole = F.interpolate(logits, (16, 24), mode="bilinear")
    for first in ((0, 0), (stride - 1, stride // 2)):
        some = _upsampled(logits, (16, 24), first=first, stride=stride)
        expected = whole[..., first[0] :: stride, first[1] :: stride]
        assert some.shape == expected.shape
        assert torch.allclose(some, expected, atol=1e-4)


def test_a_strided_loss_trains_the_same_probe():
    train, test = halves(20, contrast=3), halves(10, contrast=3)
    probe = LinearProbe(small, train, test, num_classes=2)
    full, strided = (probe.run(steps=200, label_stride=stride).mean_iou for stride in (1, 4))
    assert 0.5 < full < 0.99
    assert full == pytest.approx(strided, abs=0.02)


def test_a_test_set_without_a_label_is_named():
    test = halves(3)
    test.masks[:] = IGNORE
    with pytest.raises(DataError, match="no pixel of the test images has a label"):
        LinearProbe(small, halves(5), test, num_classes=2).run(steps=1)


def test_masks_of_any_size_are_scored_at_their_own():
    images = halves(2).images
    masks = [torch.zeros(30, 20, dtype=torch.uint8), torch.ones(7, 9, dtype=torch.uint8)]
    result = LinearProbe(
        small, halves(20), LabelledImages(images=images, masks=masks), num_classes=2
    ).run(steps=20)
    assert [tuple(mask.shape) for mask in result.predictions] == [(30, 20), (7, 9)]
