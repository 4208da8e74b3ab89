"""Detectors on a timm backbone: feature pyramid (FPN), or one map with the last stage as head (C4).

Built from torchvision's modules with the sizes of detectron2's R50-FPN and R50-C4. The remaining
differences are listed in ``scores.deviations``, and every evaluation records them.
"""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from pcd_hub.errors import StudentError
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.train.configs.detection import DetectorConfig
from pcd_hub.train.detection.roi_heads import DetectionHeads

_STRIDES = (4, 8, 16, 32)
_ANCHOR_SIZES = (32, 64, 128, 256, 512)
_ASPECT_RATIOS = (0.5, 1.0, 2.0)
_BEFORE_SUPPRESSION = {"fpn": (2000, 1000), "c4": (12_000, 6000)}
"""Proposals before non-maximum suppression in training and testing; per level of a pyramid."""


def build_detector(
    under_test: EvaluatedModel, config: DetectorConfig, *, num_classes: int, masks: bool
) -> GeneralizedRCNN:
    """Build Faster R-CNN, or Mask R-CNN with ``masks``, on a backbone.

    The new layers are initialised from torch's random state.

    Args:
        under_test: A model built with ``features_only=True``.
        config: The detector's configuration.
        num_classes: Number of classes without the background.
        masks: Build a mask head.

    Raises:
        StudentError: If the backbone lacks the strides or stages that the detector needs.
    """
    features = under_test.model
    check_pyramidal(under_test)
    freeze(features, stages=config.frozen_stages, norm=config.norm == "frozen")
    if config.kind == "fpn":
        backbone: nn.Module = PyramidBackbone(features, config)
        heads = _pyramid_heads(config, num_classes=num_classes, masks=masks)
        anchors = AnchorGenerator(
            tuple((size,) for size in _ANCHOR_SIZES), (_ASPECT_RATIOS,) * len(_ANCHOR_SIZES)
        )
    else:
        stage, channels = split_last_stage(under_test)
        backbone = SingleMapBackbone(features)
        heads = _last_stage_heads(stage, channels, config, num_classes=num_classes, masks=masks)
        anchors = AnchorGenerator((_ANCHOR_SIZES,), (_ASPECT_RATIOS,))
    proposals = _proposals(backbone, anchors, config)
    return GeneralizedRCNN(backbone, proposals, heads, _resizing(under_test, config))


def _resizing(under_test: EvaluatedModel, config: DetectorConfig) -> GeneralizedRCNNTransform:
    """Return the transform: the model's own normalisation, resizing, zero padding."""
    return GeneralizedRCNNTransform(
        min_size=config.short_sides,  # pyright: ignore[reportArgumentType]
        max_size=config.max_long_side,
        image_mean=list(under_test.mean),
        image_std=list(under_test.std),
    )


def check_pyramidal(under_test: EvaluatedModel) -> None:
    """Check that the backbone has strides 4 to 32 and takes images of any size.

    Raises:
        StudentError: If it does not.
    """
    info: Any = under_test.model.feature_info
    fixed = (getattr(under_test.model, "pretrained_cfg", None) or {}).get("fixed_input_size")
    if fixed or not set(_STRIDES) <= set(info.reduction()):
        why = "takes images of one size only" if fixed else f"has strides {info.reduction()}"
        raise StudentError(
            f"{under_test.name} {why}; expected feature maps of strides "
            f"{', '.join(map(str, _STRIDES))} for images of any size, as in ResNet, ConvNeXt or "
            "MobileNet"
        )


def freeze(features: nn.Module, *, stages: int, norm: bool) -> None:
    """Freeze the first ``stages`` completely, and with ``norm`` every other batch norm.

    A frozen batch norm is a fixed affine map, in training mode too.

    Raises:
        StudentError: If the backbone has fewer stages, or they are not separate modules in timm.
    """
    if norm:
        freeze_batch_norm_2d(features)
    if stages == 0:
        return
    ends = _stage_ends(features)
    if not 0 < stages <= len(ends):
        raise StudentError(
            f"--detector.frozen-stages {stages}: expected 0 to {len(ends)}, as this backbone has "
            f"{len(ends) or 'no separable'} stages"
        )
    for name in list(features._modules)[: ends[stages - 1] + 1]:
        frozen = freeze_batch_norm_2d(features.get_submodule(name))
        features.add_module(name, frozen.requires_grad_(requires_grad=False))


def _stage_ends(features: nn.Module) -> list[int]:
    """Return the index of the last child of each stage; empty if stages are not children."""
    children = list(features._modules)
    info: Any = features.feature_info
    ends = [name.replace(".", "_") for name in info.module_name()]
    return [children.index(end) for end in ends] if set(ends) <= set(children) else []


def split_last_stage(under_test: EvaluatedModel) -> tuple[nn.Sequential, int]:
    """Remove the stage after stride 16 from the backbone; return it, the head of C4, and its width.

    Raises:
        StudentError: If the stages are not separate modules in timm.
    """
    features, info = under_test.model, under_test.model.feature_info
    ends, strides = _stage_ends(features), info.reduction()  # pyright: ignore
    if not ends or strides[-2:] != [16, 32] or not isinstance(features, nn.ModuleDict):
        raise StudentError(
            f"{under_test.name} has no separate last stage; expected one from stride 16 to 32, or "
            "use --detector.kind fpn"
        )
    names = list(features)[ends[-2] + 1 :]
    return nn.Sequential(*(features.pop(name) for name in names)), info.channels()[-1]  # pyright: ignore


class PyramidBackbone(nn.Module):
    """Feature pyramid: maps "0" ... "3" of strides 4 to 32, and "pool" of stride 64."""

    def __init__(self, features: nn.Module, config: DetectorConfig) -> None:
        super().__init__()
        info: Any = features.feature_info
        strides, channels = info.reduction(), info.channels()
        self._levels = [strides.index(stride) for stride in _STRIDES]
        self.features = features
        self.pyramid = FeaturePyramidNetwork(
            [channels[level] for level in self._levels],
            config.channels,
            LastLevelMaxPool(),
            None if config.norm == "frozen" else nn.BatchNorm2d,
        )
        self.out_channels = config.channels

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        maps = self.features(images)
        return self.pyramid({str(n): maps[level] for n, level in enumerate(self._levels)})


class SingleMapBackbone(nn.Module):
    """Backbone with one feature map "0" of stride 16."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        info: Any = features.feature_info
        self.features = features
        self.out_channels = info.channels()[-2]

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        return {"0": self.features(images)[-1]}


def _last_stage_heads(
    stage: nn.Module, channels: int, config: DetectorConfig, *, num_classes: int, masks: bool
) -> DetectionHeads:
    """Build C4's heads: the last stage on 14 x 14 regions, then a batch norm if norms are trained.

    The extra norm is detectron2's Res5ROIHeadsExtraNorm, from MoCo's protocol: without it the scale
    of the heads' input depends on the pre-training.
    """
    extra_norm = nn.Identity() if config.norm == "frozen" else nn.BatchNorm2d(channels)
    heads = DetectionHeads(
        _regions([16], output_size=14),
        nn.Sequential(stage, extra_norm),
        _box_predictor(channels, num_classes),
        **_matching(config),
    )
    if masks:
        heads.mask_predictor = MaskRCNNPredictor(channels, 256, num_classes + 1)
    return heads


def _pyramid_heads(config: DetectorConfig, *, num_classes: int, masks: bool) -> DetectionHeads:
    """Build FPN's heads: an MLP of width 1024 on 7 x 7 regions; four convolutions for masks."""
    width = config.channels
    heads = DetectionHeads(
        _regions(_STRIDES, output_size=7),
        TwoMLPHead(width * 7 * 7, 1024),
        _box_predictor(1024, num_classes),
        **_matching(config),
    )
    if masks:
        heads.mask_roi_pool = _regions(_STRIDES, output_size=14)
        heads.mask_head = MaskRCNNHeads(width, [width] * 4, dilation=1)
        heads.mask_predictor = MaskRCNNPredictor(width, width, num_classes + 1)
    return heads


def _regions(strides: Sequence[int], *, output_size: int) -> MultiScaleRoIAlign:
    """Build RoIAlign with explicit strides.

    torchvision's infers them from the first batch, padding included: wrong for small images, and
    different in a resumed run.
    """
    names = [str(number) for number in range(len(strides))]
    align = MultiScaleRoIAlign(names, output_size, sampling_ratio=0)
    align.scales = [1 / stride for stride in strides]
    levels = [int(math.log2(stride)) for stride in strides]
    align.map_levels = initLevelMapper(levels[0], levels[-1])
    return align


def _box_predictor(channels: int, num_classes: int) -> FastRCNNPredictor:
    """Build the box predictor with detectron2's small initial weights."""
    predictor = FastRCNNPredictor(channels, num_classes + 1)
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    return predictor


def _matching(config: DetectorConfig) -> dict[str, Any]:
    """Return the thresholds of matching in training and of detections in testing."""
    return {
        "fg_iou_thresh": 0.5,
        "bg_iou_thresh": 0.5,
        "batch_size_per_image": config.head_samples,
        "positive_fraction": 0.25,
        "bbox_reg_weights": None,
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "detections_per_img": 100,
    }


def _proposals(
    backbone: nn.Module, anchors: AnchorGenerator, config: DetectorConfig
) -> RegionProposalNetwork:
    in_training, in_test = _BEFORE_SUPPRESSION[config.kind]
    channels: Any = backbone.out_channels
    return RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": in_training, "testing": in_test},
        post_nms_top_n={"training": config.train_proposals, "testing": config.test_proposals},
        nms_thresh=0.7,
    )
