"""RoI heads of a detector: classes, boxes and masks of proposed regions."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.ops import roi_align

Boxes = Float[Tensor, "_ 4"]


class DetectionHeads(RoIHeads):
    """torchvision's RoI heads with detectron2's mask targets, for FPN and C4.

    With a ``mask_roi_pool`` the mask head pools its own regions (FPN). Without one it shares the
    box head's feature map (C4, as detectron2's Res5ROIHeads). torchvision would run the last stage
    separately for boxes and masks, and its batch norm would see two kinds of batches.
    """

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Boxes],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Boxes],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        proposals, matches, labels, offsets = self.select_training_samples(proposals, targets)
        regions = self._regions(features, proposals, image_shapes)
        logits, regression = self._box_predictions(regions)
        classifier, box_reg = fastrcnn_loss(logits, regression, labels, offsets)
        losses = {"loss_classifier": classifier, "loss_box_reg": box_reg}
        if self.mask_predictor is not None:
            chosen = [label > 0 for label in labels]  # regions with an object
            boxes = [each[one] for each, one in zip(proposals, chosen, strict=True)]
            if self.mask_roi_pool is None:
                regions = regions[torch.cat(chosen)]
            else:
                regions = self._mask_regions(features, boxes, image_shapes)
            losses["loss_mask"] = mask_loss(
                self.mask_predictor(regions),
                torch.cat([label[one] for label, one in zip(labels, chosen, strict=True)]),
                boxes,
                [target["masks"] for target in targets],
                [match[one] for match, one in zip(matches, chosen, strict=True)],
            )
        return losses

    def _detections(
        self,
        features: dict[str, Tensor],
        proposals: list[Boxes],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        logits, regression = self._box_predictions(self._regions(features, proposals, image_shapes))
        boxes, scores, labels = self.postprocess_detections(
            logits, regression, proposals, image_shapes
        )
        found = [
            {"boxes": b, "scores": s, "labels": n}
            for b, s, n in zip(boxes, scores, labels, strict=True)
        ]
        if self.mask_predictor is not None:  # masks of the final boxes, as in detectron2
            regions = self._mask_regions(features, boxes, image_shapes)
            masks = maskrcnn_inference(self.mask_predictor(regions), labels)
            for each, mask in zip(found, masks, strict=True):
                each["masks"] = mask
        return found

    def _regions(
        self, features: dict[str, Tensor], boxes: list[Boxes], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Return an embedding (FPN) or a 7 x 7 feature map (C4) for each box."""
        return self.box_head(self.box_roi_pool(features, boxes, image_shapes))

    def _mask_regions(
        self, features: dict[str, Tensor], boxes: list[Boxes], image_shapes: list[tuple[int, int]]
    ) -> Float[Tensor, "regions c _ _"]:
        if self.mask_roi_pool is None:
            return self._regions(features, boxes, image_shapes)
        assert self.mask_head is not None
        return self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))

    def _box_predictions(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        return self.box_predictor(regions if regions.ndim == 2 else regions.mean((2, 3)))


def mask_loss(
    logits: Float[Tensor, "n classes side side"],
    labels: Int64[Tensor, " n"],
    boxes: list[Boxes],
    masks: list[UInt8[Tensor, "_ height width"]],
    matches: list[Int64[Tensor, " _"]],
) -> Float[Tensor, ""]:
    """Compute the binary cross-entropy of each region's mask of its own class.

    Args:
        logits: Mask logits of all regions with an object, concatenated over images.
        labels: Classes of these regions.
        boxes: The regions of each image, in pixels.
        masks: Masks of all objects of each image.
        matches: For each region, the index of its object.
    """
    if not len(labels):
        return logits.sum() * 0  # so that every parameter has a gradient
    side = logits.shape[-1]
    targets = torch.cat(
        [mask_targets(*each, side) for each in zip(masks, boxes, matches, strict=True)]
    )
    own = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(own, targets.to(own.dtype))


def mask_targets(
    masks: UInt8[Tensor, "objects height width"],
    boxes: Boxes,
    matches: Int64[Tensor, " n"],
    side: int,
) -> Float[Tensor, "n side side"]:
    """Return 1 for each cell of a box of which the object covers at least half, else 0.

    Same as detectron2's ``BitMasks.crop_and_resize``: RoIAlign with the half-pixel shift,
    thresholded at 0.5. torchvision's targets are the coverages themselves, without the shift.
    """
    regions = torch.cat([matches[:, None].to(boxes), boxes], dim=1)
    shares = roi_align(masks[:, None].to(boxes), regions, side, aligned=True)[:, 0]
    return (shares >= 0.5).to(boxes)
