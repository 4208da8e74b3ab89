"""Open the training and test split of a labelled set that a configuration names."""

from collections import Counter
from dataclasses import replace

from pcd_hub.data.labelled.classification import ClassificationSet, open_classification
from pcd_hub.data.labelled.masks.files import LAYOUT, has_masks
from pcd_hub.data.labelled.masks.survey import survey_segmentation
from pcd_hub.data.labelled.same_classes import check_same_classes
from pcd_hub.data.labelled.segmentation import SCHEMES, Columns, open_segmentation
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.data.labelled.survey import START_SECONDS, LabelSurvey, Overlap, SplitSurvey
from pcd_hub.data.sources.uris import is_file, local_path, split_uri
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.configs.labelled import (
    ClassificationDataConfig,
    MaskFormat,
    MaskSetConfig,
)


def open_segmentation_splits(
    data: MaskSetConfig, *, strict: bool = True
) -> tuple[SegmentationSet, SegmentationSet]:
    """Open the training and the test split.

    Args:
        data: Where they are.
        strict: Raise an error for an image without mask or a mask without image; otherwise leave
            them out.

    Raises:
        ConfigError: If no data set is named, or both splits are the same.
        DataError: If the data set or a split does not exist, or the splits' classes differ.
    """
    label_format = resolve_label_format(data)
    if label_format != "masks":
        from pcd_hub.train.labels.objects import draw_splits  # noqa: PLC0415 - needs pycocotools

        return draw_splits(data, label_format)
    columns = Columns(
        image=data.image_column,
        mask=data.mask_column,
        num_classes=data.num_classes,
        ignore=data.ignore,
        reduce_zero_label=data.reduce_zero_label,
    )
    train, test = (
        open_segmentation(data.source, split, columns=columns, strict=strict)
        for split in (data.train_split, data.test_split)
    )
    check_same_classes(train, test)
    return train, test


def resolve_label_format(data: MaskSetConfig) -> MaskFormat:
    """Return the format of the labels, recognised by the folder's files if it is not set.

    Raises:
        ConfigError: If no data set is named, both splits are the same, or the format is set to
            objects and the source is no folder.
        DataError: If no format or several fit.
    """
    _check_different(data, "--data.source DIR, ade20k:DIR, voc:DIR ...")
    scheme, rest = split_uri(data.source, SCHEMES)
    if scheme and data.format not in {"auto", "masks"}:
        raise ConfigError(
            f"--data.format {data.format}: {scheme}: has masks; expected auto or masks"
        )
    if scheme:
        return "masks"
    if data.format != "auto":
        return data.format
    root = local_path(rest)
    if has_masks(root, data.train_split) or is_file(root / "classes.json"):
        return "masks"
    from pcd_hub.train.labels.objects import find_format  # noqa: PLC0415 - needs pycocotools

    return find_format(root, data.train_split, others={"masks": LAYOUT})


def survey_masks(data: MaskSetConfig) -> LabelSurvey:
    """Open both splits without what is invalid or has no partner, and read all of it.

    Raises:
        ConfigError: If no data set is named, or both splits are the same.
        DataError: If the data set or a split does not exist, or the splits' classes differ.
    """
    data = replace(data, format=resolve_label_format(data), bad_annotations="drop")
    splits = open_segmentation_splits(data, strict=False)
    return survey_mask_splits(data, *splits, decode_all=True)


def survey_mask_splits(
    data: MaskSetConfig, train: SegmentationSet, test: SegmentationSet, *, decode_all: bool
) -> LabelSurvey:
    """Survey two splits; see :func:`survey_segmentation`."""
    return survey_segmentation(
        [(data.train_split, train), (data.test_split, test)],
        label_format=resolve_label_format(data),
        decode_all=decode_all,
    )


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
    check_same_classes(train, test)
    if missing := [name for name, count in _counts(train).items() if not count]:
        raise DataError(
            f"{train.name} has no image of class '{missing[0]}' ({len(missing)} of "
            f"{len(train.classes)} have none): add images, or remove the class from both splits"
        )
    return train, test


def survey_class_splits(train: ClassificationSet, test: ClassificationSet) -> LabelSurvey:
    """Compare the files of two splits, in limited time."""
    paths = [[images.path(index) for index in range(len(images))] for images in (train, test)]
    overlap = Overlap(*(list(map(str, files)) for files in paths))
    if None not in {*paths[0], *paths[1]}:
        overlap.compare_files(seconds=START_SECONDS)
    splits = [
        SplitSurvey(name=images.name, num_images=len(images), counts=_counts(images), num_empty=0)
        for images in (train, test)
    ]
    return overlap.survey("classes", train.classes, splits)


def _counts(images: ClassificationSet) -> dict[str, int]:
    numbers = Counter(images.labels)
    return {name: numbers[label] for label, name in enumerate(images.classes)}


def _check_different(data: MaskSetConfig | ClassificationDataConfig, sources: str) -> None:
    if not data.source:
        raise ConfigError(f"name the images: {sources}")
    if data.train_split == data.test_split:
        raise ConfigError(
            f"--data.test-split {data.test_split} is the training split; expected another one"
        )
