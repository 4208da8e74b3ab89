"""Models of other packages on a ResNet-18, built as docs/use_it_in builds them.

Each function takes the name of a weight, or None for the package's own random weights, and the
number of classes. The new layers come from torch's random state and are the same from both starts.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import pcd_hub

ARCHITECTURE = "resnet18.pcd"
"""timm's name of the architecture; without ``pretrained`` it is timm's random ResNet-18."""
UPERNET_CHANNELS = 64
"""transformers' default is 512, which takes twelve times as long per step at 96 px."""

Builder = Callable[[str | None, int], nn.Module]


class Scores(nn.Module):
    """A segmenter of transformers, which returns its scores alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


class FCN(nn.Module):
    """A timm backbone at output stride 16 and torchvision's FCN head."""

    def __init__(self, weight: str | None, num_classes: int, *, frozen: bool) -> None:
        super().__init__()
        self.backbone = _timm_features(weight, out_indices=(-1,), output_stride=16)
        if frozen:
            self.backbone = freeze_batch_norm_2d(self.backbone)
        self.head = FCNHead(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images)[-1])


def smp_unet(weight: str | None, num_classes: int) -> nn.Module:
    """Build Unet of segmentation_models_pytorch."""
    return _smp().Unet(**_smp_arguments(weight, num_classes))


def smp_deeplab(weight: str | None, num_classes: int) -> nn.Module:
    """Build DeepLabV3+ of segmentation_models_pytorch."""
    return _smp().DeepLabV3Plus(**_smp_arguments(weight, num_classes))


def transformers_upernet(weight: str | None, num_classes: int) -> nn.Module:
    """Build UperNet of transformers on TimmBackbone."""
    import transformers  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional

    backbone = transformers.TimmBackboneConfig(backbone=ARCHITECTURE, out_indices=[1, 2, 3, 4])
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        num_labels=num_classes,
        hidden_size=UPERNET_CHANNELS,
        auxiliary_in_channels=256,
    )
    model = transformers.UperNetForSemanticSegmentation(config)
    # transformers leaves the backbone to its own initialisation, not timm's.
    features = _timm_features(weight)
    model.backbone._backbone.load_state_dict(features.state_dict())
    return Scores(model)


def pytorch_fcn(weight: str | None, num_classes: int) -> nn.Module:
    """Build an FCN whose batch norms are trained."""
    return FCN(weight, num_classes, frozen=False)


def pytorch_fcn_frozen(weight: str | None, num_classes: int) -> nn.Module:
    """Build an FCN whose backbone's batch norms keep the statistics and scales of the weight."""
    return FCN(weight, num_classes, frozen=True)


def torchvision_retinanet(weight: str | None, num_classes: int) -> nn.Module:
    """Build RetinaNet of torchvision, its anchors half as large, for images of a few hundred px."""
    backbone = _torchvision_pyramid(
        weight, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    sizes = tuple(
        tuple(round(size * 2 ** (third / 3)) for third in range(3))
        for size in (16, 32, 64, 128, 256)
    )
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return RetinaNet(backbone, num_classes + 1, anchor_generator=anchors, **_SMALL_IMAGES)


def torchvision_faster_rcnn(weight: str | None, num_classes: int) -> nn.Module:
    """Build Faster R-CNN of torchvision with fewer proposals than its defaults."""
    return FasterRCNN(
        _torchvision_pyramid(weight),
        num_classes + 1,
        rpn_anchor_generator=AnchorGenerator(
            tuple((size,) for size in (16, 32, 64, 128, 256)), ((0.5, 1.0, 2.0),) * 5
        ),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=64,
        **_SMALL_IMAGES,
    )


_SMALL_IMAGES: dict[str, Any] = {"min_size": 160, "max_size": 320}

SEGMENTERS: dict[str, Builder] = {
    "SMP Unet": smp_unet,
    "SMP DeepLabV3+": smp_deeplab,
    "transformers UperNet": transformers_upernet,
    "PyTorch FCN": pytorch_fcn,
    "PyTorch FCN, frozen batch norms": pytorch_fcn_frozen,
}
DETECTORS: dict[str, Builder] = {
    "torchvision RetinaNet": torchvision_retinanet,
    "torchvision Faster R-CNN": torchvision_faster_rcnn,
}
WEIGHT_ONLY = {"PyTorch FCN, frozen batch norms": "PyTorch FCN"}
"""Models that make no sense from random weights, and the one whose random weights they are compared
with: timm starts the last norm of each block at 0, and a frozen 0 is never trained."""


def _timm_features(weight: str | None, **options: Any) -> nn.Module:
    name, pretrained = weight or ARCHITECTURE, weight is not None
    return timm.create_model(name, pretrained=pretrained, features_only=True, **options)


def _torchvision_pyramid(weight: str | None, **options: Any) -> Any:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        trainable_layers=5,
        norm_layer=nn.BatchNorm2d,
        **options,
    )
    if weight is not None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = pcd_hub.export(weight, to="torchvision", out=Path(scratch) / "exported")
            (file,) = folder.glob("*.pth")
            backbone.body.load_state_dict(torch.load(file, weights_only=True))
    return backbone


def _smp() -> Any:
    import segmentation_models_pytorch  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional

    return segmentation_models_pytorch


def _smp_arguments(weight: str | None, num_classes: int) -> dict[str, Any]:
    return {
        "encoder_name": f"tu-{weight or ARCHITECTURE}",
        "encoder_weights": True if weight else None,
        "classes": num_classes,
    }
