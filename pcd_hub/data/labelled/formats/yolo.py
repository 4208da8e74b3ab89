"""Read YOLO's labels: one text file per image, one line per object, in shares of the image's size.

``class x y width height`` is a box with its centre; ``class x0 y0 x1 y1 x2 y2 ...`` is a polygon.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pcd_hub.data.labelled.formats.found import (
    FoundObject,
    FoundSplit,
    flat,
    points_box,
    read_label_file,
    upright_size,
)
from pcd_hub.data.labelled.formats.pairs import find_pairs, split_folders
from pcd_hub.data.labelled.formats.yolo_names import (
    NAME_FILES,
    YoloNames,
    image_paths,
    read_names,
    split_entry,
)
from pcd_hub.data.sources.files import decode_numbered, walk
from pcd_hub.data.sources.other_files import suffix
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import DataError

_LINE = "'class x y width height' or 'class x0 y0 x1 y1 x2 y2 ...', in shares of the image's size"


def read_yolo(root: Path, split: str) -> FoundSplit:
    """Read a split below ``root``: the one of ``data.yaml``, or the folder of its name.

    An image without a label file has no objects, as for YOLO's own training.

    Raises:
        DataError: If the split, its labels or the names of the classes are missing.
    """
    names = read_names(root, root / "labels" / split, root / "labels")
    entry = split_entry(names, split)
    if entry is not None:
        return _read_listed(image_paths(root, names, entry), root, names)
    return read_yolo_folders(*split_folders(root, split), names=names)


def read_yolo_folders(images: Path, labels: Path, *, names: YoloNames | None = None) -> FoundSplit:
    """Read the labels in one folder of the images in another (or the same)."""
    names = names or read_names(labels, images, labels.parent, images.parent, labels.parent.parent)
    pairs = find_pairs(images, labels, ".txt", not_labels=NAME_FILES)
    found = _empty(labels, names)
    found.unlabelled, found.unmatched = pairs.unlabelled(), pairs.unmatched()
    for name, path in pairs.images.items():
        _add(found, path, pairs.labels.get(name), names.classes)
    return found


def _read_listed(images: list[Path], root: Path, names: YoloNames) -> FoundSplit:
    labels = {path: _label_path(path, root) for path in images}
    found = _empty(names.file, names)
    found.unlabelled = [path for path, label in labels.items() if not is_file(label)]
    if len(found.unlabelled) == len(images):
        raise DataError(
            f"none of {len(images)} images has a label file, {images[0]} none at "
            f"{labels[images[0]]}: expected the folder labels beside images"
        )
    for path, label in labels.items():
        _add(found, path, label if is_file(label) else None, names.classes)
    known = set(labels.values())
    folders = sorted({_top(root, label) for label in known})
    found.unmatched = [
        str(folder / name)
        for folder in folders
        if is_dir(folder)
        for name in sorted(walk(folder))
        if suffix(name) == ".txt"
        and Path(name).name not in NAME_FILES
        and folder / name not in known
    ]
    return found


def _top(root: Path, label: Path) -> Path:
    """Return the folder of the split's labels: two levels below labels/, or the label's own."""
    parts = label.relative_to(root).parts
    depth = max((i for i, part in enumerate(parts[:-1]) if part == "labels"), default=-1)
    return root.joinpath(*parts[: min(depth + 2, len(parts) - 1)]) if depth >= 0 else label.parent


def _label_path(image: Path, root: Path) -> Path:
    """Replace the last folder ``images`` below ``root`` by ``labels``, as YOLO's loaders do."""
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return root.joinpath(*parts)


def _empty(place: Path, names: YoloNames) -> FoundSplit:
    found = FoundSplit(place=place, names=tuple(names.classes.values()))
    found.files.append(names.file)
    return found


def _add(found: FoundSplit, image: Path, labels: Path | None, classes: Mapping[int, str]) -> None:
    size = upright_size(image)
    lines: list[tuple[int, str]] = []
    if labels is not None:
        found.files.append(labels)
        lines = decode_numbered(read_label_file(labels), str(labels))
    places = ((f"{labels}, line {number}", line) for number, line in lines)
    found.add(
        image,
        size,
        ((place, _parse(line.split(), classes, size, place=place)) for place, line in places),
    )


@dataclass(frozen=True)
class _Line:
    label: str
    shares: list[float]


def _parse(
    values: list[str], classes: Mapping[int, str], size: tuple[int, int], *, place: str
) -> FoundObject | str:
    """Parse a line, or describe what is wrong with it."""
    line = _numbers(values, classes)
    if isinstance(line, str):
        return line
    width, height = size
    if len(line.shares) == 4:
        x, y, w, h = line.shares
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return FoundObject(label=line.label, box=box, place=place)
    shares = zip(line.shares[::2], line.shares[1::2], strict=True)
    points = [(x * width, y * height) for x, y in shares]
    return FoundObject(
        label=line.label, box=points_box(points), segmentation=[flat(points)], place=place
    )


def _numbers(values: list[str], classes: Mapping[int, str]) -> _Line | str:
    if len(values) == 6:
        return f"6 values: expected {_LINE} (a sixth is a detector's confidence)"
    if len(values) < 5 or len(values) % 2 == 0:
        return f"{len(values)} values: expected {_LINE}"
    try:
        index, *shares = map(float, values)
    except ValueError:
        return f"'{' '.join(values)[:60]}': expected {_LINE}"
    if index not in classes:
        return (
            f"class {values[0]}: expected one of {len(classes)}, {min(classes)} to {max(classes)}"
        )
    if not all(math.isfinite(share) and -0.5 <= share <= 1.5 for share in shares):
        return f"'{' '.join(values)[:60]}': expected shares from 0 to 1 (are they pixels?)"
    return _Line(classes[int(index)], shares)
