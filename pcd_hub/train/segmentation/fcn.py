"""Fully convolutional network (FCN) for segmentation: a timm backbone and a small head."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from pcd_hub.data.labelled.segmentation_set import IGNORE
from pcd_hub.errors import StudentError
from pcd_hub.evaluate.models import EvaluatedModel, open_model
from pcd_hub.train.configs.segmentation import FCNConfig


def open_backbone(name: str, *, output_stride: int, seed: int) -> EvaluatedModel:
    """Open a backbone with its last feature map only, at ``output_stride``.

    Raises:
        StudentError: If there is no such model, it cannot be built at this stride, or it takes
            images of one size only.
    """
    # Most models end at stride 32 by default; other strides need support by the architecture.
    dilated = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        under_test = open_model(name, seed=seed, features_only=True, out_indices=(-1,), **dilated)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        raise StudentError(
            f"timm cannot build {name} at --fcn.output-stride {output_stride} "
            f"({str(error)[:150]}); use a ResNet, ConvNeXt or EfficientNet, or stride 32 if that "
            "is the model's default"
        ) from error
    info: Any = under_test.model.feature_info
    fixed = (getattr(under_test.model, "pretrained_cfg", None) or {}).get("fixed_input_size")
    if fixed or info.reduction()[-1] != output_stride:
        why = "takes images of one size only" if fixed else f"ends at stride {info.reduction()[-1]}"
        raise StudentError(
            f"{name} {why}; --fcn.output-stride {output_stride}: expected a feature map of that "
            "stride for images of any size, as in ResNet, ConvNeXt or EfficientNet"
        )
    return under_test


class FCN(nn.Module):
    """Fully convolutional network that scores every class at every pixel.

    The head's layers are initialised from torch's random state.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, under_test: EvaluatedModel, config: FCNConfig, *, num_classes: int) -> None:
        super().__init__()
        if config.norm == "frozen":
            freeze_batch_norm_2d(under_test.model)
        info: Any = under_test.model.feature_info
        self.features = under_test.model
        self.head = head(info.channels()[-1], config, num_classes=num_classes)
        self._stride = config.output_stride
        for name, values in (("mean", under_test.mean), ("std", under_test.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes h w"]:
        height, width = images.shape[2:]
        normalised = (images / 255 - self.mean) / self.std
        # Pad to a multiple of the stride, or the scores would be stretched; 0 is the mean colour.
        padded = F.pad(normalised, (0, -width % self._stride, 0, -height % self._stride))
        scores = self.head(self.features(padded)[-1]).float()
        return F.interpolate(scores, padded.shape[2:], mode="bilinear")[..., :height, :width]


def head(in_channels: int, config: FCNConfig, *, num_classes: int) -> nn.Sequential:
    """Build the head: two 3 x 3 convolutions with batch norm and ReLU, and a 1 x 1 convolution."""
    classifier = nn.Conv2d(config.channels, num_classes, 1)
    # Small, so that all classes start with similar scores at any scale of the features.
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.get_parameter("bias"))
    first = _block(in_channels, config.channels, config.dilation)
    return nn.Sequential(
        *first, *_block(config.channels, config.channels, config.dilation), classifier
    )


def _block(in_channels: int, channels: int, dilation: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(
        in_channels, channels, 3, padding=dilation, dilation=dilation, bias=False
    )
    return convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


def pixel_cross_entropy(
    scores: Float[Tensor, "b classes h w"], masks: UInt8[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Compute the mean cross-entropy over labelled pixels; 0 if there are none."""
    total = F.cross_entropy(scores, masks.long(), ignore_index=IGNORE, reduction="sum")
    return total / (masks != IGNORE).sum().clamp_min(1)
