"""Segmentation sets whose labels are objects, read as for detection and drawn as masks."""

from pcd_hub.data.labelled.formats.layouts import LabelFormat, find_format
from pcd_hub.data.labelled.masks.objects import DrawingRule, check_outlines, draw_objects
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.data.sources.uris import local_path
from pcd_hub.train.configs.detection import CocoDataConfig
from pcd_hub.train.configs.labelled import MaskSetConfig
from pcd_hub.train.detection.splits import read_splits

__all__ = ["draw_splits", "find_format"]


def draw_splits(
    data: MaskSetConfig, label_format: LabelFormat
) -> tuple[SegmentationSet, SegmentationSet]:
    """Open the training and the test split.

    Raises:
        DataError: If labels are missing or invalid, objects have no outlines, or the splits'
            categories differ.
    """
    root = local_path(data.source)
    named = CocoDataConfig(
        source=root,
        format=label_format,
        train_split=data.train_split,
        test_split=data.test_split,
        bad_annotations=data.bad_annotations,
    )
    splits = read_splits(named, for_masks=True)
    check_outlines(splits, label_format=label_format)
    rule = DrawingRule(overlap=data.overlap, unlabelled=data.unlabelled)
    names = (f"{root.resolve().name}/{name}" for name in (data.train_split, data.test_split))
    train, test = (
        draw_objects(split, rule, name=name) for split, name in zip(splits, names, strict=True)
    )
    return train, test
