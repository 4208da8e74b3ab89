"""Scores, data set name and protocol of a detection evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pcd_hub.data.labelled.coco import CocoImage, CocoSplit
from pcd_hub.train.configs.detection import CocoDataConfig, DetectConfig, DetectorConfig
from pcd_hub.train.detection.coco_metrics import coco_scores
from pcd_hub.train.detection.schedule import DetectionSchedule
from pcd_hub.train.detection.voc_metrics import Points, voc_scores

KINDS: tuple[tuple[str, Literal["bbox", "segm"]], ...] = (("box", "bbox"), ("mask", "segm"))
"""Kinds of overlap to score, with their names in COCOeval."""

METRICS = ("AP", "AP50", "AP75")
"""Metrics in the table; COCO's other nine are stored in the table's details."""

VOC_YEARS: dict[str, Points] = {"VOC2007": "11", "VOC2010": "all"}
"""Points of recall at which each year's challenge measured the precision."""


def score_detections(
    split: CocoSplit, predictions: Sequence[Mapping[str, Any]], *, masks: bool, voc: bool = False
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the table's metrics in %, e.g. "box AP50", and further scores as details.

    With ``voc`` the metrics include Pascal VOC's, e.g. "box AP50 VOC2007".
    """
    scores, details = {}, {}
    for word, kind in KINDS[: 1 + masks]:
        statistics, by_category = coco_scores(split.to_coco(), predictions, kind)
        scores |= {f"{word} {name}": 100 * statistics[name] for name in METRICS}
        details[word] = {
            # -1: no object of this size
            name: round(100 * value, 3)
            for name, value in statistics.items()
            if value >= 0
        }
        details[f"{word} AP by category"] = {
            split.categories[key]: round(100 * value, 2) for key, value in by_category.items()
        }
    for year, points in VOC_YEARS.items() if voc else ():
        own = {k: 100 * v for k, v in voc_scores(split, predictions, points=points).items()}
        scores[f"box AP50 {year}"] = own["AP50"]
        details[f"box {year}"] = {name: round(value, 3) for name, value in own.items()}
    return scores, details


def sample_images(split: CocoSplit, count: int = 4) -> list[CocoImage]:
    """Return up to ``count`` evenly spaced images with objects."""
    images = split.with_objects()
    return list(images[:: math.ceil(len(images) / count)])


def dataset_name(data: CocoDataConfig) -> str:
    """Name the data set, e.g. "coco val2017"; without a root, after the annotation file."""
    if data.test_annotations is not None or data.source is None:
        return data.test_split if data.test_annotations is None else data.test_annotations.stem
    return f"{data.source.resolve().name} {data.test_split}"


PROTOCOL_VERSION = 1
"""Raise it with every change that may change scores under the same protocol sentence."""


def protocol(
    config: DetectConfig,
    schedule: DetectionSchedule,
    *,
    masks: bool,
    num_training_images: int,
    is_test_trained_on: bool,
    num_processes: int,
    mixed_precision: str,
) -> str:
    """Return one sentence with every choice that affects the scores."""
    detector, stated, sides = config.detector, config.optim, config.detector.short_sides
    drops = ", ".join(map(str, schedule.drops)) or "none"
    parts = [
        f"{'Mask' if masks else 'Faster'} R-CNN {detector.kind.upper()}",
        f"{detector.channels} channels" if detector.kind == "fpn" else "",
        f"batch norm {detector.norm}",
        f"in {num_processes} processes" if detector.norm == "batch" and num_processes > 1 else "",
        f"precise over {detector.precise_bn_batches} batches" if _is_precise(detector) else "",
        f"{detector.frozen_stages} frozen stages",
        f"{detector.train_proposals}/{detector.test_proposals} proposals",
        f"{detector.head_samples} head samples",
        f"short side {min(sides)} to {max(sides)}",
        f"test {sides[-1]} and at most {detector.max_long_side}",
        f"{schedule.steps} steps of {stated.global_batch_size} images",
        f"SGD with momentum {stated.momentum:g} and weight decay {stated.weight_decay:g}",
        f"learning rate {schedule.peak_lr:g}, warm-up {schedule.warmup_steps}, drops at {drops}",
        f"mixed precision {mixed_precision}" if mixed_precision != "no" else "",
        f"{num_training_images} training images",
        f"{100 * config.data.train_share:g} % drawn" if config.data.train_share < 1 else "",
        "scored on the very images it was trained on" if is_test_trained_on else "",
        "bad annotations left out" if config.data.bad_annotations == "drop" else "",
    ]
    scores = "average precision as COCO's"
    if config.data.voc_scores:
        scores += (
            ", and VOC's: at an overlap of 0.5, without difficult objects, at 11 points or all"
        )
    unlike = ", ".join(deviations(config, masks=masks))
    return f"{', '.join(filter(None, parts))}; {scores}; unlike detectron2: {unlike}"


def deviations(config: DetectConfig, *, masks: bool) -> list[str]:
    """List the differences from detectron2 that the rest of the protocol does not mention."""
    detector, data = config.detector, config.data
    bare_c4 = detector.kind == "c4" and detector.norm != "frozen" and not _is_precise(detector)
    found = [
        "whole steps of one orientation" if data.group_by_orientation else "mixed orientations",
        "resized without antialiasing",
        "padded to multiples of 32" if detector.kind == "c4" else "",
        "anchors in whole pixels",
        "RoIAlign without the half-pixel shift",
        "smooth L1 with beta 1/9",
        "masks as bitmaps, pasted at whole pixels" if masks else "",
        "torchvision's start of the box head" if detector.kind == "fpn" else "",
        "torchvision's start of the mask predictor" if masks else "",
        "running averages in batch norm" if bare_c4 else "",
        "VOC scores of unrounded detections" if data.voc_scores else "",
    ]
    return list(filter(None, found))


def _is_precise(detector: DetectorConfig) -> bool:
    return detector.precise_bn_batches > 0 and detector.norm != "frozen"
