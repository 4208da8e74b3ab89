"""Draw masks of classes from annotated objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
from PIL import Image
from pycocotools import mask as mask_codes

from pcd_hub.data.decoding import as_rgb, decode
from pcd_hub.data.labelled.coco import (
    CocoImage,
    CocoObject,
    CocoSplit,
    Segmentation,
    decode_run_length_code,
    to_run_length_code,
)
from pcd_hub.data.labelled.coco_survey import size_fault
from pcd_hub.data.labelled.segmentation_set import (
    IGNORE,
    MAX_CLASSES,
    LabelledImage,
    LeftOut,
    MaskSizeError,
    SegmentationSet,
    class_table,
)
from pcd_hub.errors import DataError

BACKGROUND = "background"
_BACKGROUND_NAMES = {BACKGROUND, "_background_"}


@dataclass(frozen=True, kw_only=True)
class DrawingRule:
    """How objects become a mask."""

    overlap: Literal["smaller", "later"] = "smaller"
    """The object that a pixel in several of them belongs to: the one with the smaller area, or the
    one that comes later in the file."""
    unlabelled: Literal["background", "ignore"] = "background"
    """The class of a pixel in no object: the background, or none."""


def draw_objects(split: CocoSplit, rule: DrawingRule, *, name: str) -> SegmentationSet:
    """Return the set whose masks are drawn from a split's objects when they are loaded.

    A crowd, or a region to ignore, has no class.

    Args:
        split: The objects, after all checks.
        rule: How they become masks.
        name: Name of the set in results and errors.

    Raises:
        DataError: If there are too few or too many classes.
    """
    classes, numbers = number_classes(split.categories, rule)
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(
            f"{split.file} has {len(classes)} classes ({', '.join(classes[:3])} ...) with "
            f"--data.unlabelled {rule.unlabelled}: expected 2 to {MAX_CLASSES}"
        )
    return SegmentationSet(
        ObjectRows(split, numbers, rule),
        name=name,
        classes=classes,
        table=class_table(len(classes), ignore=IGNORE),
        left_out=LeftOut(
            unlabelled=tuple(map(str, split.unlabelled)),
            unmatched=split.unmatched,
            dropped=split.dropped,
        ),
    )


def number_classes(
    categories: Mapping[int, str], rule: DrawingRule
) -> tuple[list[str], dict[int, int]]:
    """Return the names of the classes, and the class of each category id.

    The background is class 0, also if a category has its name; the others follow by their ids.
    """
    known = {key for key, name in categories.items() if name.lower() in _BACKGROUND_NAMES}
    first = [categories[key] for key in sorted(known)][:1]
    if rule.unlabelled == "background":
        first = first or [BACKGROUND]
    others = sorted(categories.keys() - known)
    numbers = dict.fromkeys(known, 0) | {key: len(first) + i for i, key in enumerate(others)}
    return [*first, *(categories[key] for key in others)], numbers


def check_outlines(splits: Sequence[CocoSplit], *, label_format: str) -> None:
    """Check that the objects have outlines.

    LabelMe's and CVAT's own exports of masks fill a rectangle; so it may stand beside outlines.

    Raises:
        DataError: If objects have boxes alone.
    """
    objects = [
        (image, each) for split in splits for image in split.images for each in image.objects
    ]
    boxes = [(image, each) for image, each in objects if each.segmentation is None]
    if not boxes or (label_format in {"labelme", "cvat"} and len(boxes) < len(objects)):
        return
    image, first = boxes[0]
    raise DataError(
        f"{image.path}: object {first.annotation_id} has a box and no outline ({len(boxes)} of "
        f"{len(objects)} objects): expected polygons or masks; draw them, or train a detector on "
        "the boxes (pcd_hub.train.detection.detect)"
    )


@dataclass(frozen=True)
class ObjectRows:
    """The images of a split, with masks drawn from their objects."""

    split: CocoSplit
    numbers: Mapping[int, int]
    """Class of each category id."""
    rule: DrawingRule

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> LabelledImage:
        image = self.split.images[index]
        return LabelledImage(
            name=str(image.path),
            path=image.path,
            image=partial(decode, image.path, str(image.path), as_rgb),
            mask_name=f"{self.split.file}, image {image.image_id}",
            mask=partial(draw_mask, image, self.numbers, self.rule),
            mask_size=lambda: (image.width, image.height),
        )

    def fingerprint(self) -> str:
        """Return a short text that changes when the labels or the rule change."""
        rule = f"overlap {self.rule.overlap}, unlabelled {self.rule.unlabelled}"
        return f"{self.split.fingerprint()}, {rule}"

    def num_images_by_class(self, classes: Sequence[str]) -> dict[str, int]:
        """Count for each class the images with an object of it; the background is in all."""
        counts = dict.fromkeys(classes, 0)
        if self.rule.unlabelled == "background":
            counts[classes[0]] = len(self)
        for image in self.split.images:
            found = {self.numbers[e.category_id] for e in image.objects if not e.is_crowd}
            for number in found - {0} if self.rule.unlabelled == "background" else found:
                counts[classes[number]] += 1
        return counts

    def num_empty(self) -> int:
        """Count the images without objects."""
        return sum(not image.objects for image in self.split.images)


def draw_mask(image: CocoImage, numbers: Mapping[int, int], rule: DrawingRule) -> Image.Image:
    """Draw the class of every pixel of an image.

    Raises:
        MaskSizeError: If the image has another size than its labels say.
        DataError: If the image cannot be read.
    """
    if fault := size_fault(image):  # first, as a size in a file can be anything
        raise MaskSizeError(f"{fault}; they must agree")
    unlabelled = IGNORE if rule.unlabelled == "ignore" else 0
    canvas = np.full((image.height, image.width), unlabelled, np.uint8)
    objects: Sequence[CocoObject] = image.objects
    if rule.overlap == "smaller":
        objects = sorted(objects, key=lambda each: -each.area)  # in the file's order if equal

    def class_of(each: CocoObject) -> int:
        return IGNORE if each.is_crowd else numbers[each.category_id]

    for number, group in groupby(objects, class_of):
        codes = [to_run_length_code(_outline(each), image.height, image.width) for each in group]
        canvas[decode_run_length_code(mask_codes.merge(codes)) > 0] = number
    return Image.fromarray(canvas)


def _outline(each: CocoObject) -> Segmentation:
    if each.segmentation is not None:
        return each.segmentation
    left, top, width, height = each.box
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]
