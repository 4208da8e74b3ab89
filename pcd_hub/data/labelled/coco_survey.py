"""Survey of a detection data set."""

from collections import Counter
from collections.abc import Sequence

from pcd_hub.data.labelled.coco import CocoImage, CocoSplit
from pcd_hub.data.labelled.formats.found import upright_size
from pcd_hub.data.labelled.survey import (
    START_SECONDS,
    LabelSurvey,
    Overlap,
    SplitSurvey,
    read_all,
    with_broken,
)


def survey_detection(
    splits: Sequence[tuple[str, CocoSplit]], *, label_format: str, decode_all: bool
) -> LabelSurvey:
    """Survey the splits of a detection data set.

    Args:
        splits: Name and content of the training split and of the test split.
        label_format: Name of the format of the labels.
        decode_all: Decode every image, to find broken ones and near copies; otherwise only equal
            files are searched, in limited time.
    """
    first, last = (split for _, split in splits)
    overlap = Overlap(*([str(image.path) for image in split.images] for split in (first, last)))
    overlap.compare_files(seconds=None if decode_all else START_SECONDS)
    found = [_survey_split(name, split) for name, split in splits]
    if decode_all:
        images = [*first.images, *last.images]
        thumbnails, broken = read_all([image.path for image in images])
        for number, image in enumerate(images):
            if number not in broken and (fault := size_fault(image)):
                broken[number] = fault
        overlap.compare_content(thumbnails)
        found = with_broken(found, broken, border=len(first.images))
    return overlap.survey(label_format, list(first.categories.values()), found)


def size_fault(image: CocoImage) -> str:
    """Return how the size of an image's file differs from that of its labels; empty if not."""
    width, height = upright_size(image.path)
    if (width, height) == (image.width, image.height):
        return ""
    return (
        f"{image.path} has {width} x {height} pixels, its labels say {image.width} x {image.height}"
    )


def _survey_split(name: str, split: CocoSplit) -> SplitSurvey:
    objects = [each for image in split.images for each in image.objects]
    counts = Counter(split.categories[each.category_id] for each in objects if not each.is_crowd)
    return SplitSurvey(
        name=name,
        num_images=len(split.images),
        counts=dict(counts),
        num_empty=sum(not image.objects for image in split.images),
        num_difficult=sum(each.is_difficult for each in objects),
        num_crowds=sum(each.is_crowd for each in objects),
        num_repeated=sum(map(_num_repeated, split.images)),
        num_clipped=sum(map(_num_clipped, split.images)),
        dropped=split.dropped,
        unlabelled=tuple(map(str, split.unlabelled)),
        unmatched=split.unmatched,
    )


def _num_repeated(image: CocoImage) -> int:
    return len(image.objects) - len({(each.category_id, each.box) for each in image.objects})


def _num_clipped(image: CocoImage) -> int:
    count = 0
    for each in image.objects:
        left, top, width, height = each.box
        count += min(left, top) < -1e-3 or (
            max(left + width - image.width, top + height - image.height) > 1e-3
        )
    return count
