"""Read the training and test split of a detection data set, and check their masks."""

from pathlib import Path
from typing import Literal

from pcd_hub.data.labelled.coco import CocoSplit, read_split
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.configs.detection import CocoDataConfig


def read_splits(config: CocoDataConfig, *, read_masks: bool = True) -> tuple[CocoSplit, CocoSplit]:
    """Read the training and the held-out split.

    Raises:
        ConfigError: If no data set is named.
        DataError: If a file is missing or invalid, or the splits' categories differ.
    """
    train, val = (
        read_split(
            annotations, images, bad_annotations=config.bad_annotations, read_masks=read_masks
        )
        for images, annotations in (
            _places(
                config, config.train_split, config.train_images, config.train_annotations, "train"
            ),
            _places(config, config.test_split, config.test_images, config.test_annotations, "test"),
        )
    )
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


def _places(
    config: CocoDataConfig, name: str, images: Path | None, annotations: Path | None, which: str
) -> tuple[Path, Path]:
    root = config.source
    if root is None and (images is None or annotations is None):
        raise ConfigError(
            f"no data: name its folder with --data.source, or both --data.{which}-images "
            f"and --data.{which}-annotations"
        )
    root = root or Path()
    coco = root / name  # COCO's layout
    images = images or (coco if is_dir(coco) else root / "images" / name)
    annotations = annotations or root / "annotations" / f"instances_{name}.json"
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
