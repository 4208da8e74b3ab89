"""Read the training and test split of a detection data set, and check their masks."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from pcd_hub.data.labelled.coco import CocoSplit, read_split
from pcd_hub.data.labelled.coco_survey import survey_detection
from pcd_hub.data.labelled.formats.found import FoundSplit
from pcd_hub.data.labelled.formats.layouts import (
    LabelFormat,
    find_coco,
    find_format,
    find_format_of,
)
from pcd_hub.data.labelled.formats.read import (
    ObjectFormat,
    class_names,
    find_objects,
    find_objects_in,
    to_split,
)
from pcd_hub.data.labelled.survey import LabelSurvey
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.configs.detection import CocoDataConfig


def read_splits(
    config: CocoDataConfig, *, read_masks: bool = True, for_masks: bool = False
) -> tuple[CocoSplit, CocoSplit]:
    """Read the training and the held-out split.

    Args:
        config: Where they are.
        read_masks: Read and check masks; if False, they are ignored.
        for_masks: Keep regions to ignore that are no objects, as crowds of class 0, and background.

    Raises:
        ConfigError: If no data set is named.
        DataError: If a file is missing or invalid, or the splits' categories differ.
    """
    label_format = resolve_format(config)
    if label_format == "coco":
        train, val = _read_coco(config, read_masks=read_masks)
    else:
        train, val = _read_objects(config, label_format, read_masks=read_masks, for_masks=for_masks)
    if train.categories != val.categories:
        odd = min(set(train.categories.items()) ^ set(val.categories.items()))
        raise DataError(
            f"{val.file} and {train.file} differ in category {odd[0]} ({odd[1]!r}); "
            "expected the same categories in both"
        )
    for split in (train, val):
        if not split.with_objects():
            raise DataError(
                f"{split.file} has no object, expected at least one; name another split"
            )
    return train, val


def survey_labels(config: CocoDataConfig, *, decode_all: bool) -> LabelSurvey:
    """Read both splits without invalid annotations, and survey them.

    Raises:
        ConfigError: If no data set is named.
        DataError: If a file is missing or invalid, or the splits' categories differ.
    """
    config = replace(config, format=resolve_format(config), bad_annotations="drop")
    train, val = read_splits(config)
    return survey_splits(config, train, val, decode_all=decode_all)


def survey_splits(
    config: CocoDataConfig, train: CocoSplit, val: CocoSplit, *, decode_all: bool
) -> LabelSurvey:
    """Survey two splits; see :func:`survey_detection`."""
    return survey_detection(
        [(config.train_split, train), (config.test_split, val)],
        label_format=resolve_format(config),
        decode_all=decode_all,
    )


def resolve_format(config: CocoDataConfig) -> LabelFormat:
    """Return the format of the labels, recognised by the folder's files if it is not set.

    Raises:
        DataError: If no format or several fit.
    """
    if config.format != "auto":
        return config.format
    if config.train_annotations is not None:
        return find_format_of(config.train_annotations)
    if config.source is not None and is_file(config.source):
        raise DataError(f"--data.source {config.source} is a file: expected the folder of the data")
    if config.source is None or not is_dir(config.source):
        return "coco"  # whose own errors name the missing files
    return find_format(config.source, config.train_split)


def _read_coco(config: CocoDataConfig, *, read_masks: bool) -> tuple[CocoSplit, CocoSplit]:
    train, val = (
        read_split(
            annotations, images, bad_annotations=config.bad_annotations, read_masks=read_masks
        )
        for images, annotations in (_places(config, place) for place in _named_places(config))
    )
    return train, val


def _read_objects(
    config: CocoDataConfig, label_format: ObjectFormat, *, read_masks: bool, for_masks: bool
) -> tuple[CocoSplit, CocoSplit]:
    found = [_find(config, place, label_format) for place in _named_places(config)]
    names = class_names(found, for_masks=for_masks)
    train, val = (
        to_split(
            each,
            names,
            bad_annotations=config.bad_annotations,
            read_masks=read_masks,
            for_masks=for_masks,
        )
        for each in found
    )
    return train, val


class _Place(NamedTuple):
    """The options that name one split."""

    which: str
    """First part of the options' names."""
    split: str
    images: Path | None
    annotations: Path | None


def _named_places(config: CocoDataConfig) -> tuple[_Place, _Place]:
    return (
        _Place("train", config.train_split, config.train_images, config.train_annotations),
        _Place("test", config.test_split, config.test_images, config.test_annotations),
    )


def _find(config: CocoDataConfig, place: _Place, label_format: ObjectFormat) -> FoundSplit:
    _check_named(config, place)
    if place.annotations is not None or place.images is not None:
        if place.images is None or place.annotations is None:
            raise ConfigError(
                f"--data.{place.which}-images and --data.{place.which}-annotations: expected both "
                f"or neither for {label_format} labels"
            )
        return find_objects_in(place.images, place.annotations, label_format)
    return find_objects(config.source or Path(), place.split, label_format)


def _check_named(config: CocoDataConfig, place: _Place) -> None:
    if config.source is None and (place.images is None or place.annotations is None):
        raise ConfigError(
            f"no data: name its folder with --data.source, or both --data.{place.which}-images "
            f"and --data.{place.which}-annotations"
        )


def _places(config: CocoDataConfig, place: _Place) -> tuple[Path, Path]:
    """Return the folder of the images and the JSON file of a split in COCO's format."""
    _check_named(config, place)
    name, which = place.split, place.which
    root = config.source or Path()
    coco = root / name  # COCO's layout
    images = place.images or (coco if is_dir(coco) else root / "images" / name)
    annotations = place.annotations or root / "annotations" / f"instances_{name}.json"
    if place.annotations is None and not is_file(annotations):
        images, annotations = find_coco(root, name) or (images, annotations)
        images = place.images or images
    if not is_file(annotations):
        others = annotations.parent.glob("*.json") if is_dir(annotations.parent) else ()
        found = ", ".join(path.name for path in sorted(others))
        raise DataError(
            f"there is no {annotations} (its folder holds {found or 'no json'}); "
            f"name the split with --data.{which}-split, or the file with --data.{which}-annotations"
        )
    if not is_dir(images):
        raise DataError(
            f"there is no folder {images}; name the images' folder with --data.{which}-images"
        )
    return images, annotations


def use_masks(mode: Literal["auto", "yes", "no"], *splits: CocoSplit) -> bool:
    """Decide whether to train a mask head.

    Raises:
        DataError: If some objects have masks and others do not, or masks are required and missing.
    """
    if mode == "no":
        return False
    without = [
        (split.file, each.annotation_id)
        for split in splits
        for image in split.images
        for each in image.objects
        if each.segmentation is None
    ]
    total = sum(len(image.objects) for split in splits for image in split.images)
    if mode == "auto" and len(without) == total:
        return False
    if without:
        file, annotation_id = without[0]
        raise DataError(
            f"{file}: annotation {annotation_id} has no mask ({len(without)} of {total} objects "
            "have none); add them, or train on boxes alone with --detector.masks no"
        )
    return True
