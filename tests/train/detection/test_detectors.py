import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_codes
from torch import nn

from pcd_hub.errors import StudentError
from pcd_hub.evaluate.models import EvaluatedModel, open_model
from pcd_hub.train.configs.detection import DETECT, DetectorConfig
from pcd_hub.train.detection.detectors import build_detector
from pcd_hub.train.detection.roi_heads import mask_loss, mask_targets
from pcd_hub.train.optimizers import parameter_groups

FPN = DetectorConfig(
    norm="batch",
    short_sides=(64, 48),
    max_long_side=96,
    channels=16,
    train_proposals=20,
    test_proposals=10,
    head_samples=8,
)
C4 = dataclasses.replace(FPN, kind="c4")


def backbone(name: str = "random:test_resnet") -> EvaluatedModel:
    return open_model(name, features_only=True)


def detector(config: DetectorConfig, *, masks: bool = True):
    return build_detector(backbone(), config, num_classes=2, masks=masks)


def batch() -> tuple[list, list]:
    images = list(torch.rand(2, 3, 48, 64))
    mask = torch.zeros(1, 48, 64, dtype=torch.uint8)
    mask[:, 8:40, 8:40] = 1
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
        "labels": torch.tensor([2]),
        "masks": mask,
    }
    return images, [target, target]


@pytest.mark.parametrize("config", [FPN, C4], ids=["fpn", "c4"])
@pytest.mark.parametrize("masks", [True, False])
def test_every_trained_parameter_gets_a_gradient(config, masks):
    model = detector(config, masks=masks).train()
    losses = model(*batch())
    parts = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(losses) == parts | ({"loss_mask"} if masks else set())
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("config", [FPN, C4], ids=["fpn", "c4"])
def test_what_is_found_lies_in_the_picture_and_has_masks_of_its_size(config):
    model = detector(config).eval()
    model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        (found,) = model([torch.rand(3, 40, 60)])
    count = len(found["boxes"])
    assert count > 0
    assert found["masks"].shape == (count, 1, 40, 60)
    assert set(found["labels"].tolist()) <= {1, 2}
    assert found["boxes"].min() >= 0
    assert (found["boxes"] <= torch.tensor([60, 40, 60, 40])).all()


def test_c4_moves_the_last_stage_from_the_backbone_into_the_head():
    reference = backbone().model
    model = detector(C4)
    images = torch.rand(1, 3, 64, 64)
    # The random weights are drawn from the seed, so both are the same network.
    trunk, stage = model.backbone.eval(), model.roi_heads.box_head[0].eval()
    *_, c4, c5 = reference.eval()(images)
    assert not hasattr(trunk.features, "layer4")
    torch.testing.assert_close(trunk(images)["0"], c4)
    torch.testing.assert_close(stage(c4), c5)


def test_c4_runs_the_last_stage_once_for_boxes_and_masks():
    model, calls = detector(C4), []
    model.roi_heads.box_head.register_forward_hook(lambda *_: calls.append(1))
    model.train()(*batch())
    assert len(calls) == 1
    model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        model.eval()([torch.rand(3, 40, 60)])
    assert len(calls) == 3  # once more for the masks of the final boxes


@pytest.mark.parametrize("config", [FPN, C4], ids=["fpn", "c4"])
def test_masks_are_learned_on_the_regions_that_hold_an_object(config, monkeypatch):
    model, seen, chosen = detector(config).train(), [], []
    model.roi_heads.mask_predictor.register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    select = model.roi_heads.select_training_samples

    def noted(*arguments):
        found = select(*arguments)
        chosen.append([int((label > 0).sum()) for label in found[2]])
        return found

    monkeypatch.setattr(model.roi_heads, "select_training_samples", noted)
    model(*batch())
    assert seen == [sum(chosen[0])]
    assert 0 < seen[0] < 2 * config.head_samples


def test_the_extra_norms_are_there_when_norms_are_trained():
    def new_norms(model):
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d) and "features" not in name
        ]

    assert "roi_heads.box_head.1" in new_norms(detector(C4))
    assert sum("pyramid" in name for name in new_norms(detector(FPN))) == 8
    for config in (FPN, C4):
        assert new_norms(detector(dataclasses.replace(config, norm="frozen"))) == []


@pytest.mark.parametrize("config", [FPN, C4], ids=["fpn", "c4"])
def test_regions_are_cut_at_the_maps_own_strides_whatever_the_padding(config):
    model, seen = detector(config).eval(), torch.zeros(1, 3, 64, 96)
    maps = {name: torch.zeros_like(v) for name, v in model.backbone(seen).items() if name != "pool"}
    for name, value in maps.items():  # each place holds its own column in pixels
        stride = 96 // value.shape[-1]
        value.add_(stride * (torch.arange(value.shape[-1]) + 0.5))
        assert (stride == 16) if config.kind == "c4" else (stride == 4 * 2 ** int(name))
    boxes = [torch.tensor([[8.0, 0.0, 40.0, 32.0]])]
    (region,) = model.roi_heads.box_roi_pool(maps, boxes, [(33, 50)])  # padded to 64 x 96
    assert region.mean() == pytest.approx(24, abs=8.1)  # within half a place of the coarsest map


RPN = {
    "foreground and background IoU": (0.7, 0.3),
    "every object has an anchor": True,
    "sampled anchors": 256,
    "share of objects": 0.5,
    "non-maximum suppression": 0.7,
    "box weights": (1.0, 1.0, 1.0, 1.0),
    "least score": 0.0,
    "initial deviations": (0.01, 0.01, 0.01),
}
HEADS = {
    "foreground and background IoU": (0.5, 0.5),
    "every object has a region": False,
    "sampled regions": 512,
    "share of objects": 0.25,
    "non-maximum suppression": 0.5,
    "box weights": (10.0, 10.0, 5.0, 5.0),
    "least score": 0.05,
    "detections": 100,
    "initial deviations": (0.01, 0.001),
}
DETECTRON2 = {
    "coco_r18_fpn_1x": {
        "anchors": (((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5),
        "proposals before and after suppression, training": (2000, 1000),
        "proposals before and after suppression, test": (1000, 1000),
        "rpn": RPN,
        "heads": HEADS,
        "box region and sampling": ((7, 7), 0),
        "mask region and sampling": ((14, 14), 0),
        "mask side": 28,
    },
    "coco_r18_c4_1x": {
        "anchors": (((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        "proposals before and after suppression, training": (12_000, 2000),
        "proposals before and after suppression, test": (6000, 1000),
        "rpn": RPN,
        "heads": HEADS,
        "box region and sampling": ((14, 14), 0),
        "mask region and sampling": None,  # the boxes'
        "mask side": 14,
    },
}
"""config/defaults.py, configs/Base-RCNN-FPN.yaml and Base-RCNN-C4.yaml, the layers' __init__."""


def deviations(*layers: nn.Module) -> tuple[float, ...]:
    assert all((layer.bias == 0).all() for layer in layers)
    return tuple(float(f"{layer.weight.std():.1g}") for layer in layers)


def constants(model) -> dict:
    rpn, heads = model.rpn, model.roi_heads
    shared = [
        {
            "foreground and background IoU": (m.high_threshold, m.low_threshold),
            f"every object has a{word}": m.allow_low_quality_matches,
            f"sampled {word.split()[-1]}s": part.fg_bg_sampler.batch_size_per_image,
            "share of objects": part.fg_bg_sampler.positive_fraction,
            "non-maximum suppression": part.nms_thresh,
            "box weights": part.box_coder.weights,
            "least score": part.score_thresh,
        }
        for part, word in ((rpn, "n anchor"), (heads, " region"))
        for m in [part.proposal_matcher]
    ]
    head, last = rpn.head, heads.box_predictor
    first = deviations(head.conv[0][0], head.cls_logits, head.bbox_pred)
    own = {"detections": heads.detections_per_img}
    pools = heads.box_roi_pool, heads.mask_roi_pool
    region, mask_region = (
        pool and (tuple(pool.output_size), pool.sampling_ratio) for pool in pools
    )
    generator = rpn.anchor_generator
    when = "proposals before and after suppression"
    before, after = rpn._pre_nms_top_n, rpn._post_nms_top_n
    mask = heads.mask_predictor(
        torch.zeros(
            1, heads.mask_predictor[0].in_channels, *(mask_region[0] if mask_region else (7, 7))
        )
    )
    return {
        "anchors": (generator.sizes, generator.aspect_ratios),
        f"{when}, training": (before["training"], after["training"]),
        f"{when}, test": (before["testing"], after["testing"]),
        "rpn": shared[0] | {"initial deviations": first},
        "heads": shared[1]
        | own
        | {"initial deviations": deviations(last.cls_score, last.bbox_pred)},
        "box region and sampling": region,
        "mask region and sampling": mask_region,
        "mask side": mask.shape[-1],
    }


@pytest.mark.parametrize("name", DETECTRON2)
def test_the_built_detector_has_detectron2s_constants(name):
    model = build_detector(backbone(), DETECT[name].detector, num_classes=80, masks=True)
    assert constants(model) == DETECTRON2[name]
    assert len(model.backbone(torch.zeros(1, 3, 64, 64))) == len(model.rpn.anchor_generator.sizes)


def test_mask_targets_are_0_or_1_by_half_a_cell():
    side = 28
    mask = torch.zeros(2, 60, 80, dtype=torch.uint8)
    mask[1, 6:20, 9:] = 1
    # A box of one pixel a cell holds the mask itself; without the half-pixel shift the edges move.
    boxes = torch.tensor([[4.0, 2.0, 32.0, 30.0], [4.4, 2.6, 32.4, 30.6], [5.0, 0.0, 61.0, 56.0]])
    same, shifted, coarse = mask_targets(mask, boxes, torch.tensor([1, 1, 1]), side)
    assert torch.equal(same, mask[1, 2:30, 4:32].float())
    # 0.4 of a cell lies within the left edge, which is no object; 0.6 within the upper, which is.
    assert torch.equal(shifted, torch.roll(same, -1, 0))
    # Cells of two pixels; the edges fall between them.
    assert torch.equal(coarse, mask[1, 0:56:2, 5:61:2].float())
    assert not mask_targets(mask, boxes, torch.tensor([0, 0, 0]), side).any()


def test_mask_targets_agree_with_detectron2s_polygons():
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([40 + 25.3 * np.cos(angles), 33 + 18.7 * np.sin(angles)], 1)
    whole = decoded(circle, 70, 90)
    box = torch.tensor([[10.3, 12.2, 68.9, 47.1]])
    (found,) = mask_targets(torch.from_numpy(whole)[None], box, torch.tensor([0]), 28)
    left, top, right, bottom = box[0].tolist()
    scaled = (circle - [left, top]) * [28 / (right - left), 28 / (bottom - top)]
    assert (found.numpy() == decoded(scaled, 28, 28)).mean() > 0.98


def decoded(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    codes = mask_codes.frPyObjects([polygon.ravel().tolist()], height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return mask_codes.decode(mask_codes.merge(codes))


def test_the_mask_loss_is_zero_at_the_binary_targets_and_log_2_without_an_opinion():
    mask = torch.zeros(1, 40, 40, dtype=torch.uint8)
    mask[:, 7:21, 5:30] = 1
    boxes, matches = [torch.tensor([[3.3, 4.4, 31.8, 26.1]])], [torch.tensor([0])]
    targets = mask_targets(mask, boxes[0], matches[0], 28)
    logits = torch.stack([torch.full((1, 28, 28), 50.0), 100 * targets - 50], dim=1)
    label = torch.tensor([1])
    assert mask_loss(logits, label, boxes, [mask], matches) < 1e-9
    none = mask_loss(0 * logits, label, boxes, [mask], matches)
    assert none == pytest.approx(math.log(2))
    empty = mask_loss(logits[:0], label[:0], [boxes[0][:0]], [mask], [matches[0][:0]])
    assert empty == 0


def moved(config: DetectorConfig) -> set[str]:
    """The children of the backbone that one step in training mode changes."""
    model = detector(config, masks=False).train()
    features = model.backbone.features
    before = {name: value.clone() for name, value in features.state_dict().items()}
    groups = parameter_groups(model, weight_decay=0.1)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    torch.stack(list(model(*batch()).values())).sum().backward()
    optimizer.step()
    after = features.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_frozen_stages_do_not_move_and_the_others_do():
    assert {name.partition(".")[0] for name in moved(FPN)} == {
        *("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    }
    frozen_stem = moved(dataclasses.replace(FPN, frozen_stages=1))
    assert {name.partition(".")[0] for name in frozen_stem} == {
        *("layer1", "layer2", "layer3", "layer4")
    }
    frozen_two = moved(dataclasses.replace(FPN, frozen_stages=2))
    assert {name.partition(".")[0] for name in frozen_two} == {"layer2", "layer3", "layer4"}


def test_frozen_norms_do_not_move_and_convolutions_do():
    names = moved(dataclasses.replace(FPN, norm="frozen"))
    assert names
    assert not any("bn" in name or "running" in name for name in names)
    assert any("running_mean" in name for name in moved(FPN))


def test_a_frozen_norm_is_the_evaluated_one():
    images = torch.rand(2, 3, 64, 64)
    reference = backbone().model
    reference.train()(4 * images)  # statistics that are not the first
    under_test = dataclasses.replace(backbone(), model=reference)
    expected = reference.eval()(images)[1:]
    model = build_detector(
        under_test, dataclasses.replace(FPN, norm="frozen"), num_classes=2, masks=False
    )
    found = model.train().backbone.features(images)[1:]
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_batch_norm_is_not_decayed_and_what_is_frozen_is_left_out():
    model = detector(dataclasses.replace(FPN, frozen_stages=2))
    rest, norms = parameter_groups(model, weight_decay=0.25)
    assert (rest["weight_decay"], norms["weight_decay"]) == (0.25, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = {names[id(p)] for p in (*rest["params"], *norms["params"])}
    assert listed == {name for name, p in model.named_parameters() if p.requires_grad}
    modules = dict(model.named_modules())
    for parameter in norms["params"]:
        assert isinstance(modules[names[id(parameter)].rpartition(".")[0]], nn.BatchNorm2d)
    assert all(
        parameter.ndim != 1 or "bn" not in names[id(parameter)] for parameter in rest["params"]
    )


def test_pixels_are_normalised_by_the_models_own_values_and_the_last_size_is_the_tests():
    under_test = dataclasses.replace(backbone(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    model = build_detector(under_test, FPN, num_classes=2, masks=False).eval()
    seen, _ = model.transform([torch.ones(3, 96, 128)])
    assert seen.image_sizes == [(48, 64)]
    torch.testing.assert_close(seen.tensors[0, :, 5, 5], torch.tensor([1.8, 3.2, 0.7]))
    sizes = {model.train().transform([torch.ones(3, 96, 128)])[0].image_sizes[0] for _ in range(20)}
    assert sizes == {(48, 64), (64, 85)}


def test_other_pyramids_work():
    model = build_detector(backbone("random:test_convnext"), FPN, num_classes=2, masks=False)
    assert [m.shape[-1] for m in model.eval().backbone(torch.zeros(1, 3, 64, 64)).values()] == [
        *(16, 8, 4, 2, 1)
    ]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("random:test_vit", FPN, "test_vit takes images of one size only; .* strides 4, 8, 16, 32"),
        (
            "random:test_resnet",
            dataclasses.replace(FPN, frozen_stages=9),
            "9: expected 0 to 5, .* has 5 stages",
        ),
        (
            "random:test_efficientnet",
            C4,
            "no separate last stage; expected .*, or use --detector.kind fpn",
        ),
    ],
)
def test_unsuitable_backbones_are_rejected(name, config, message):
    with pytest.raises(StudentError, match=message):
        build_detector(backbone(name), config, num_classes=2, masks=False)
