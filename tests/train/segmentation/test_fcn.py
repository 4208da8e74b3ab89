"""The network of finetune_seg.py and the crops it is trained on."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from pcd_hub.data.labelled.segmentation_set import LabelledImage, SegmentationSet, class_table
from pcd_hub.data.loader import BatchPlan
from pcd_hub.errors import StudentError
from pcd_hub.train.configs.segmentation import FCNConfig, FinetuneDataConfig
from pcd_hub.train.segmentation.batches import RandomCrop, Region, crop_batches
from pcd_hub.train.segmentation.fcn import FCN, open_backbone, pixel_cross_entropy

MEAN = (0.5, 0.25, 0.0)


def network(config: FCNConfig, num_classes: int = 3) -> FCN:
    stride = config.output_stride
    under_test = open_backbone("random:test_resnet", output_stride=stride, seed=0)
    for module in under_test.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(
                module.weight
            )  # timm starts some at 0, and nothing before them would move
    return FCN(under_test, config, num_classes=num_classes)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_any_size_of_image_gives_scores_at_its_size(stride):
    model = network(FCNConfig(output_stride=stride, channels=8)).eval()
    for height, width in ((64, 96), (33, 47), (1, 5)):
        images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        assert model(images).shape == (1, 3, height, width)
    assert model.features(torch.zeros(1, 3, 96, 96))[-1].shape[2:] == (96 // stride, 96 // stride)


def test_the_padding_moves_no_score():
    model = network(FCNConfig(channels=8)).eval()
    model.mean.zero_()  # so that black is the mean colour
    image = torch.randint(0, 256, (1, 3, 33, 47), dtype=torch.uint8)
    whole = F.pad(image, (0, 1, 0, 15))
    torch.testing.assert_close(model(image), model(whole)[..., :33, :47])


def test_the_head_is_two_convolutions_and_a_classifier():
    model = network(FCNConfig(channels=24, dilation=6), num_classes=19)
    convolutions = [layer for layer in model.head if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [24, 24, 19]
    assert [layer.kernel_size[0] for layer in convolutions] == [3, 3, 1]
    assert [layer.dilation[0] for layer in convolutions] == [6, 6, 1]
    assert [type(layer) for layer in model.head].count(nn.BatchNorm2d) == 2


def test_images_are_normalised_as_the_backbone_expects():
    under_test = open_backbone("random:test_resnet", output_stride=16, seed=0)
    model = FCN(under_test, FCNConfig(channels=8), num_classes=3).eval()
    seen = []
    model.features.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.full((1, 3, 16, 20), 255, dtype=torch.uint8)
    model(image)
    mean, std = (torch.tensor(v) for v in (under_test.mean, under_test.std))
    assert torch.allclose(seen[0][0, :, 0, 0], (1 - mean) / std)
    assert seen[0].shape == (1, 3, 16, 32)
    assert not seen[0][..., 20:].any(), "the padding is the mean colour"


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_all_is_trained_but_for_frozen_norms(norm):
    model = network(FCNConfig(norm=norm, channels=8)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    masks = torch.randint(0, 3, (2, 32, 32)).byte()
    for _ in range(2):
        pixel_cross_entropy(model(images), masks).backward()
        optimizer.step()
    norms = {
        f"{name}.{what}"
        for name, module in model.features.named_modules()
        if "BatchNorm" in type(module).__name__
        for what in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    after = model.state_dict()
    still = {n.removeprefix("features.") for n, v in before.items() if torch.equal(v, after[n])}
    assert still == ({n for n in norms if f"features.{n}" in after} if norm == "frozen" else set())


def test_the_loss_is_the_mean_over_labelled_pixels():
    scores = torch.randn(2, 3, 4, 5)
    masks = torch.randint(0, 3, (2, 4, 5)).byte()
    masks[0, :2] = 255
    known = masks != 255
    slow = F.cross_entropy(scores.permute(0, 2, 3, 1)[known].double(), masks[known].long())
    assert float(pixel_cross_entropy(scores, masks)) == pytest.approx(float(slow), rel=1e-5)
    assert float(pixel_cross_entropy(scores, torch.full_like(masks, 255))) == 0


@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [
        ("random:densenet121", 16, "cannot build random:densenet121 at --fcn.output-stride 16"),
        ("random:test_vit", 32, "expected a feature map of that stride for images of any size"),
        ("random:resnet81", 16, "did you mean"),
    ],
)
def test_unsuitable_backbones_are_rejected(name, stride, message):
    with pytest.raises(StudentError, match=message):
        open_backbone(name, output_stride=stride, seed=0)


def coded(width: int, height: int) -> tuple[Image.Image, np.ndarray]:
    """An image whose brightness says which class a pixel has, 0 or 2: squares of 8 px."""
    rows, columns = np.mgrid[:height, :width]
    mask = 2 * ((rows // 8 + columns // 8) % 2).astype(np.uint8)
    return Image.fromarray(np.stack([100 * mask] * 3, -1)), mask


def test_image_and_mask_stay_together():
    image, mask = coded(64, 48)
    crop = RandomCrop(FinetuneDataConfig(crop_size=(40, 56)), mean=MEAN)
    rng = np.random.default_rng(0)
    for _ in range(20):
        pixels, labels = crop.cut(image, mask, crop.draw(image.size, rng))
        assert pixels.shape == (3, 40, 56)
        known = labels != 255
        assert set(labels[known].tolist()) <= {0, 2}
        bright = pixels[2][known] > 100
        agree = (bright == labels[known].bool()).float().mean()
        assert agree > 0.9, "all but pixels on the borders between squares"


def test_a_crop_at_scale_1_is_a_part_of_the_image_and_the_rest_is_mean_without_label():
    image, mask = coded(64, 48)
    crop = RandomCrop(FinetuneDataConfig(crop_size=(60, 32), scales=(1.0, 1.0)), mean=MEAN)
    region = Region(box=(7, 0, 39, 48), size=(32, 48), mirrored=False)
    pixels, labels = crop.cut(image, mask, region)
    part = torch.from_numpy(np.array(image)[:, 7:39]).permute(2, 0, 1)
    assert torch.equal(pixels[:, :48], part)
    assert torch.equal(labels[:48], torch.from_numpy(mask[:, 7:39].copy()))
    assert pixels[:, 48:].flatten(1).unique(dim=1).flatten().tolist() == [128, 64, 0]
    assert (labels[48:] == 255).all()
    mirrored = Region(box=region.box, size=region.size, mirrored=True)
    turned_pixels, turned_labels = crop.cut(image, mask, mirrored)
    assert torch.equal(turned_pixels, pixels.flip(2))
    assert torch.equal(turned_labels, labels.flip(1))


def test_regions_are_drawn_from_the_whole_image_at_every_scale():
    crop = RandomCrop(FinetuneDataConfig(crop_size=(32, 32), scales=(0.25, 2.0)), mean=MEAN)
    rng = np.random.default_rng(0)
    regions = [crop.draw((100, 60), rng) for _ in range(300)]
    for region in regions:
        left, top, right, bottom = region.box
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 60
        assert max(region.size) <= 32
    boxes = np.array([region.box for region in regions])
    assert boxes[:, :2].min() == 0
    assert boxes[:, 0].max() > 70, "of 84 at scale 2"
    assert boxes[:, 1].max() > 35, "of 44"
    assert min(min(region.size) for region in regions) < 20, "smaller than the crop: padded"
    assert 100 < sum(region.mirrored for region in regions) < 200
    scales = [region.size[0] / (region.box[2] - region.box[0]) for region in regions]
    assert min(scales) < 0.35
    assert 1.9 < max(scales) <= 2.02
    assert RandomCrop(FinetuneDataConfig(), mean=MEAN).draw((1, 1), rng).size in {(1, 1), (2, 2)}


def drawn_set(count: int) -> SegmentationSet:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20, 24, 3), np.uint8) for _ in range(count)]
    rows = [
        LabelledImage(
            name=str(number),
            image=lambda picture=picture: Image.fromarray(picture),
            mask_name=str(number),
            mask=lambda picture=picture: Image.fromarray(picture[..., 0] % 2),
        )
        for number, picture in enumerate(pictures)
    ]
    return SegmentationSet(rows, name="drawn", classes=("a", "b"), table=class_table(2, ignore=255))


def test_batches_are_a_pure_function_of_seed_and_step():
    crop = RandomCrop(FinetuneDataConfig(crop_size=(16, 16)), mean=MEAN)

    def steps(count: int = 9, seed: int = 0, **changed) -> list[torch.Tensor]:
        plan = BatchPlan(global_batch_size=4, seed=seed, total_steps=4, **changed)
        batches = crop_batches(drawn_set(count), crop, plan, num_workers=0)
        return [
            torch.cat([crops, masks[:, None].expand(-1, 3, -1, -1)]) for crops, masks in batches
        ]

    whole, again, later = steps(), steps(), steps(start_step=2)
    assert len(whole) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], later, strict=True))
    assert not torch.equal(whole[0], steps(seed=1)[0])
    parts = [steps(rank=rank, world_size=2)[1] for rank in (0, 1)]
    shared = torch.cat([part[:2] for part in parts] + [part[2:] for part in parts])
    assert torch.equal(shared, whole[1]), "however many processes share a batch"
    first, second = (set(map(bytes, step.numpy())) for step in steps(count=4)[:2])
    assert not first & second, "another epoch crops the same images otherwise"
