"""A fully convolutional network (FCN) for segmentation: a timm backbone and a small head."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from pcd_hub.data.labelled.sets import IGNORE
from pcd_hub.errors import StudentError
from pcd_hub.evaluate.models import EvaluatedModel, open_model
from pcd_hub.train.configs.segmentation import FCNConfig


def open_backbone(name: str, *, output_stride: int, seed: int) -> EvaluatedModel:
    """The backbone with its last map only, at ``output_stride``.

    Raises:
        StudentError: If there is no such model, it cannot be built at this stride, or it takes
            images of one size only.
    """
    # As built, most end at 32; only what is asked for beyond that needs an architecture's help.
    dilated = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        under_test = open_model(name, seed=seed, features_only=True, out_indices=(-1,), **dilated)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        raise StudentError(
            f"timm cannot build {name} at --fcn.output-stride {output_stride} "
            f"({str(error)[:150]}); take a ResNet, ConvNeXt or EfficientNet, or 32 "
            "where that is its own stride"
        ) from error
    info: Any = under_test.model.feature_info
    fixed = (getattr(under_test.model, "pretrained_cfg", None) or {}).get("fixed_input_size")
    if fixed or info.reduction()[-1] != output_stride:
        why = "takes images of one size only" if fixed else f"ends at stride {info.reduction()[-1]}"
        raise StudentError(
            f"{name} {why}; --fcn.output-stride {output_stride} needs a map of that stride for "
            "images of any size, as of ResNet, ConvNeXt or EfficientNet"
        )
    return under_test


class FCN(nn.Module):
    """Images -> the score of every class at every pixel.

    The head's layers are drawn from torch's random state.
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
        # Whole strides, or the scores would be stretched; 0 is the mean colour.
        padded = F.pad(normalised, (0, -width % self._stride, 0, -height % self._stride))
        scores = self.head(self.features(padded)[-1]).float()
        return F.interpolate(scores, padded.shape[2:], mode="bilinear")[..., :height, :width]


def head(in_channels: int, config: FCNConfig, *, num_classes: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with batch norm and ReLU, then 1 x 1 to the classes."""
    classifier = nn.Conv2d(config.channels, num_classes, 1)
    # All classes start alike, whatever the scale of the backbone.
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
    """The mean over the pixels with a label; 0, not a division by 0, where no pixel has one."""
    total = F.cross_entropy(scores, masks.long(), ignore_index=IGNORE, reduction="sum")
    return total / (masks != IGNORE).sum().clamp_min(1)
