"""The heads of C4: boxes and masks from the same map of each region."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
)


class SharedRoIHeads(RoIHeads):
    """RoI heads in which boxes and masks read the same map of each region.

    As detectron2's Res5ROIHeads; torchvision's own would run the last stage once for the boxes
    and once more for the masks, and its batch norm would see two kinds of batches.
    """

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _regions(
        self,
        features: dict[str, Tensor],
        proposals: list[Float[Tensor, "_ 4"]],
        image_shapes: list[tuple[int, int]],
    ) -> Float[Tensor, "regions c 7 7"]:
        return self.box_head(self.box_roi_pool(features, proposals, image_shapes))

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Float[Tensor, "_ 4"]],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        proposals, matches, labels, offsets = self.select_training_samples(proposals, targets)
        regions = self._regions(features, proposals, image_shapes)
        logits, regression = self.box_predictor(regions.mean((2, 3)))
        classifier, box_reg = fastrcnn_loss(logits, regression, labels, offsets)
        losses = {"loss_classifier": classifier, "loss_box_reg": box_reg}
        if self.mask_predictor is not None:
            objects = [label > 0 for label in labels]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(regions[torch.cat(objects)]),
                [boxes[chosen] for boxes, chosen in zip(proposals, objects, strict=True)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [match[chosen] for match, chosen in zip(matches, objects, strict=True)],
            )
        return losses

    def _detections(
        self,
        features: dict[str, Tensor],
        proposals: list[Float[Tensor, "_ 4"]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        regions = self._regions(features, proposals, image_shapes)
        logits, regression = self.box_predictor(regions.mean((2, 3)))
        boxes, scores, labels = self.postprocess_detections(
            logits, regression, proposals, image_shapes
        )
        found = [
            {"boxes": b, "scores": s, "labels": n}
            for b, s, n in zip(boxes, scores, labels, strict=True)
        ]
        if self.mask_predictor is not None:
            # Of the final boxes, as detectron2 does.
            mask_logits = self.mask_predictor(self._regions(features, boxes, image_shapes))
            for each, mask in zip(found, maskrcnn_inference(mask_logits, labels), strict=True):
                each["masks"] = mask
        return found
