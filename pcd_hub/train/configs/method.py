"""Settings of pixel-wise distillation: loss, targets, negatives and the student's head."""

import logging
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.fields import Bounds, Channels, Positive

log = logging.getLogger("pcd_hub")

TEMPERATURES = {"pixel_info_nce": 0.2, "similarity_kl": 0.07}
"""Default temperature by loss."""


@dataclass(frozen=True, kw_only=True)
class PixelMethodConfig:
    """Pixel-wise distillation; the defaults are PCD's."""

    loss: Literal["pixel_info_nce", "cosine_smooth_l1", "similarity_kl"] = "pixel_info_nce"
    """pixel_info_nce: PCD's loss, against a queue of negatives.
    cosine_smooth_l1: regression of the standardised teacher feature map.
    similarity_kl: KL divergence of the similarities between the pixels of
    an image."""
    targets: Literal["pixels", "pooled"] = "pixels"
    """pixels: one target per pixel of the feature map. pooled: one mean
    vector per image, that is image-level distillation, for comparison."""
    views: Literal["same", "cross"] = "same"
    """same: teacher and student see the same view. cross: each sees the
    other's, paired by grid position as in the released PCD code."""
    feature_maps: Annotated[int, Bounds(int, 1, 4)] = 1
    """Number of the student's feature maps that are distilled. 1: the last,
    as in PCD. 2: also the one before, which is twice as fine in most
    CNNs, against the teacher's map at that size (teacher.image-size sets
    how much detail that map has); each map has a head of its own, and the
    loss is their mean."""
    temperature: Positive | None = None
    """Temperature of the loss. None: 0.2 for pixel_info_nce, 0.07 for similarity_kl."""
    centre_targets: bool = False
    """For pixel_info_nce: subtract the mean of the teacher's feature maps so
    far from them. For teachers without a projection head, whose vectors
    have a large part in common."""
    queue_length: Annotated[int, Bounds(int, 1, 2**24)] = 65_536
    """For pixel_info_nce: number of negatives, limited to half the number of
    images so that no image is its own negative."""
    head: Literal["mocov3", "byol", "swav", "barlow_twins", "linear"] = "mocov3"
    """Layout of the student's projection head; its output has the teacher's channels."""
    head_width: Channels | None = None
    """Hidden width of the student's head. None: the layout's."""

    def validate(self, group: str) -> None:
        """Reject several feature maps for a loss of mean vectors, and settings without effect."""
        if self.centre_targets and self.loss != "pixel_info_nce":
            raise ConfigError(
                f"{group}centre-targets has no effect with {group}loss {self.loss}; leave it out, "
                "or use pixel_info_nce"
            )
        if self.targets == "pooled" and self.feature_maps > 1:
            raise ConfigError(
                f"{group}targets pooled and {group}feature-maps {self.feature_maps}: expected 1, "
                "as the mean of the last feature map alone is distilled"
            )


def resolve_method(method: PixelMethodConfig, *, num_images: int | None) -> PixelMethodConfig:
    """Return the method with its defaults resolved: temperature, queue length, width of the head.

    Args:
        method: The configured method.
        num_images: Images to train on; None for a stream.
    """
    temperature = (
        TEMPERATURES.get(method.loss) if method.temperature is None else method.temperature
    )
    from pcd_hub.method.heads import STUDENT_HEADS  # noqa: PLC0415 - imports torch

    hidden = [width for *widths, _ in STUDENT_HEADS[method.head].mlps for width in widths]
    length = method.queue_length
    if method.loss == "pixel_info_nce" and num_images is not None and length > num_images // 2:
        length = max(1, num_images // 2)  # with a longer one an image would be its own negative
        log.warning("queue of %d keys capped at %d, half the data set", method.queue_length, length)
    return replace(
        method,
        temperature=temperature,
        queue_length=length,
        head_width=method.head_width or next(iter(hidden), None),
    )
