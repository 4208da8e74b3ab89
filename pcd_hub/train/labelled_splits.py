"""Open the two splits of a labelled set that a configuration names."""

from pcd_hub.data.labelled.classification import ClassifiedSet, open_classified
from pcd_hub.data.labelled.segmentation import Columns, open_segmentation
from pcd_hub.data.labelled.sets import SegmentationSet
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.configs.labelled import ClassificationDataConfig, SegmentationSetConfig


def open_splits(data: SegmentationSetConfig) -> tuple[SegmentationSet, SegmentationSet]:
    """The images to train on and the images to score."""
    if not data.source:
        raise ConfigError("name the images: --data.source DIR, ade20k:DIR, voc:DIR ...")
    if data.train_split == data.test_split:
        raise ConfigError(
            f"--data.test-split {data.test_split} is what is trained on; name another"
        )
    columns = Columns(
        image=data.image_column,
        mask=data.mask_column,
        num_classes=data.num_classes,
        ignore=data.ignore,
        reduce_zero_label=data.reduce_zero_label,
    )
    train, test = (
        open_segmentation(data.source, split, columns=columns)
        for split in (data.train_split, data.test_split)
    )
    return train, test


def open_labelled(data: ClassificationDataConfig) -> tuple[ClassifiedSet, ClassifiedSet]:
    """The images to train on and the images to score.

    Raises:
        ConfigError: If no images are named, or both are the same.
        DataError: If there are no such images, or the two differ in their classes.
    """
    if not data.source:
        raise ConfigError("name the images: --data.source DIR with SPLIT/CLASS/")
    train, test = (
        open_classified(
            data.source, split, image_column=data.image_column, label_column=data.label_column
        )
        for split in (data.train_split, data.test_split)
    )
    if data.train_split == data.test_split:
        raise ConfigError(
            f"--data.test-split {data.test_split} is what is trained on; name another"
        )
    if train.classes != test.classes:
        odd = min(set(train.classes) ^ set(test.classes), default=train.classes[0])
        raise DataError(
            f"{train.name} and {test.name} differ in class '{odd}', or in the order of classes; "
            "both need the same"
        )
    return train, test
