"""Open the training and test split of a labelled set that a configuration names."""

from pcd_hub.data.labelled.classification import ClassificationSet, open_classification
from pcd_hub.data.labelled.segmentation import Columns, open_segmentation
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.configs.labelled import ClassificationDataConfig, SegmentationSetConfig


def open_segmentation_splits(
    data: SegmentationSetConfig,
) -> tuple[SegmentationSet, SegmentationSet]:
    """Open the training and the test split.

    Raises:
        ConfigError: If no data set is named, or both splits are the same.
        DataError: If the data set or a split does not exist.
    """
    _check_different(data, "--data.source DIR, ade20k:DIR, voc:DIR ...")
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


def open_classification_splits(
    data: ClassificationDataConfig,
) -> tuple[ClassificationSet, ClassificationSet]:
    """Open the training and the test split.

    Raises:
        ConfigError: If no data set is named, or both splits are the same.
        DataError: If the data set or a split does not exist, or the splits' classes differ.
    """
    _check_different(data, "--data.source DIR with SPLIT/CLASS/")
    train, test = (
        open_classification(
            data.source, split, image_column=data.image_column, label_column=data.label_column
        )
        for split in (data.train_split, data.test_split)
    )
    if train.classes != test.classes:
        odd = min(set(train.classes) ^ set(test.classes), default=train.classes[0])
        raise DataError(
            f"{train.name} and {test.name} differ in class '{odd}' or in the order of classes; "
            "expected the same classes in both"
        )
    return train, test


def _check_different(data: SegmentationSetConfig | ClassificationDataConfig, sources: str) -> None:
    if not data.source:
        raise ConfigError(f"name the images: {sources}")
    if data.train_split == data.test_split:
        raise ConfigError(
            f"--data.test-split {data.test_split} is the training split; expected another one"
        )
