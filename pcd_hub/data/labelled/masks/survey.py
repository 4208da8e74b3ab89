"""Survey of a segmentation set: its classes in images and pixels, and masks that do not fit."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pcd_hub.data.labelled.formats.found import upright_size
from pcd_hub.data.labelled.segmentation_set import (
    IGNORE,
    HasObjects,
    Mask,
    MaskSizeError,
    MaskValueError,
    SegmentationSet,
)
from pcd_hub.data.labelled.survey import START_SECONDS, LabelSurvey, Overlap, SplitSurvey
from pcd_hub.data.survey.duplicates import Thumbnail, make_thumbnail
from pcd_hub.errors import DataError


def survey_segmentation(
    splits: Sequence[tuple[str, SegmentationSet]], *, label_format: str, decode_all: bool
) -> LabelSurvey:
    """Survey the splits of a segmentation set.

    Args:
        splits: Name and content of the training split and of the test split.
        label_format: Name of the format of the labels.
        decode_all: Decode every image and mask, to count pixels and to find broken ones and near
            copies; otherwise only equal files and sizes are compared, in limited time.
    """
    sets = [images for _, images in splits]
    names = [[images.image_name(index) for index in range(len(images))] for images in sets]
    are_files = all(images.rows[0].path is not None for images in sets)
    overlap = Overlap(names[0], names[1])
    if are_files:
        overlap.compare_files(seconds=None if decode_all else START_SECONDS)
    if decode_all:
        contents = [read_content(images) for images in sets]
        found = [
            content.survey(name, images)
            for content, (name, images) in zip(contents, splits, strict=True)
        ]
        border = len(names[0])
        later = {border + number: each for number, each in contents[1].thumbnails.items()}
        thumbnails = contents[0].thumbnails | later
        if not are_files:
            overlap.compare_pixels(thumbnails)
        overlap.compare_content(thumbnails)
    else:
        end = time.monotonic() + START_SECONDS
        found = [_survey_unread(name, images, deadline=end) for name, images in splits]
    return overlap.survey(label_format, sets[0].classes, found)


@dataclass(kw_only=True)
class Content:
    """What the images and masks of one split contain."""

    thumbnails: dict[int, Thumbnail] = field(default_factory=dict)
    images_with: Counter[int] = field(default_factory=Counter)
    """Images by class."""
    pixels: Counter[int] = field(default_factory=Counter)
    """Pixels by class, or ``IGNORE``."""
    num_empty: int = 0
    """Images without a labelled pixel."""
    misfits: list[str] = field(default_factory=list)
    other_values: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, mask: Mask) -> None:
        """Count the pixels of a mask."""
        counts = np.bincount(mask.ravel(), minlength=256)
        found = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
        self.pixels.update(found)
        self.images_with.update(found.keys())
        self.num_empty += found.keys() == {IGNORE}

    def survey(self, name: str, images: SegmentationSet) -> SplitSurvey:
        """Return the counts by the names of the classes."""
        rows, classes = images.rows, list(enumerate(images.classes))
        return SplitSurvey(
            name=name,
            num_images=len(images),
            counts={label: self.images_with[number] for number, label in classes},
            num_empty=rows.num_empty() if isinstance(rows, HasObjects) else self.num_empty,
            pixels={label: self.pixels[number] for number, label in classes},
            num_ignored_pixels=self.pixels[IGNORE],
            misfits=tuple(self.misfits),
            other_values=tuple(self.other_values),
            broken=tuple(self.broken),
            **vars(images.left_out),
        )


def read_content(images: SegmentationSet) -> Content:
    """Decode every image and mask, and sort out those that training could not use."""
    content = Content()
    for index in range(len(images)):
        try:
            image = images.image(index)
            content.thumbnails[index] = make_thumbnail(image)
            mask = images.mask(index)
            images.check_size(index, image.size, (mask.shape[1], mask.shape[0]))
        except MaskSizeError as error:
            content.misfits.append(str(error))
        except MaskValueError as error:
            content.other_values.append(str(error))
        except DataError as error:
            content.broken.append(str(error))
        else:
            content.add(mask)
    return content


def _survey_unread(name: str, images: SegmentationSet, *, deadline: float) -> SplitSurvey:
    rows = images.rows
    has_objects = isinstance(rows, HasObjects)
    return SplitSurvey(
        name=name,
        num_images=len(images),
        counts=rows.num_images_by_class(images.classes) if has_objects else None,
        num_empty=rows.num_empty() if has_objects else 0,
        misfits=tuple(_misfits(images, deadline)),
        **vars(images.left_out),
    )


def _misfits(images: SegmentationSet, deadline: float) -> list[str]:
    """Compare sizes of images and masks by their headers, until the deadline."""
    found = []
    for index in range(len(images)):
        row = images.rows[index]
        if row.path is None or row.mask_size is None or time.monotonic() > deadline:
            break
        try:
            images.check_size(index, upright_size(row.path), row.mask_size())
        except MaskSizeError as error:
            found.append(str(error))
        except DataError:  # a broken image or mask is named when it is read
            continue
    return found
