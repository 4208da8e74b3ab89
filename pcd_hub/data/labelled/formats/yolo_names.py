"""Read what YOLO's ``data.yaml`` states: names of the classes, and where each split's images are.

::

    path: .                       # optional, relative to the file
    train: images/train           # a folder, a .txt list of images, or a list of these
    val: images/val
    names: [cat, dog]             # or {0: cat, 1: dog}
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pcd_hub.data.labelled.formats.found import MAX_NAMES, read_label_file
from pcd_hub.data.labelled.formats.pairs import inside, split_names
from pcd_hub.data.sources.files import decode_lines, find_image_paths
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import DataError

NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "notes.txt", "README.txt")
"""Text files beside labels that are no labels; the first three list the classes."""
_EXPECTED = "expected 'names: [cat, dog]' or 'names: {0: cat, 1: dog}'"


@dataclass(frozen=True, kw_only=True)
class YoloNames:
    """Classes, and the splits if a ``data.yaml`` states them."""

    file: Path
    classes: dict[int, str]
    content: dict[str, Any] = field(default_factory=dict)


def find_yaml(folder: Path) -> Path | None:
    """Return the folder's ``data.yaml``, or its only other YAML file with the key ``names``."""
    if is_file(folder / "data.yaml"):
        return folder / "data.yaml"
    others = [*folder.glob("*.yaml"), *folder.glob("*.yml")] if is_dir(folder) else []
    named = [path for path in sorted(others) if b"names:" in read_label_file(path)]
    return named[0] if len(named) == 1 else None


def read_names(*folders: Path) -> YoloNames:
    """Read the classes from the first folder that lists them.

    Raises:
        DataError: If none does, or the list is invalid.
    """
    for folder in folders:
        if file := find_yaml(folder):
            return _from_yaml(file)
        for name in NAME_FILES[:3]:
            if is_file(file := folder / name):
                lines = [line.strip() for line in decode_lines(read_label_file(file), str(file))]
                return YoloNames(file=file, classes=_checked(dict(enumerate(lines)), file))
    raise DataError(
        f"{folders[0]} names no classes for its YOLO labels: expected data.yaml ({_EXPECTED}), or "
        "classes.txt with one name a line"
    )


def _from_yaml(file: Path) -> YoloNames:
    try:
        # Every value is text: `no` stays a name. Values are not copied, so aliases cannot grow.
        content = yaml.load(read_label_file(file), Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        found = " ".join(str(error).split())[:120]
        raise DataError(f"{file} cannot be read as YAML ({found}); correct it") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} has no keys: {_EXPECTED}")
    if "kpt_shape" in content:
        raise DataError(
            f"{file} has kpt_shape: expected boxes or polygons, no keypoints; export boxes"
        )
    names = content.get("names")
    try:
        if isinstance(names, list):
            classes = dict(enumerate(names))
        else:
            classes = {int(key): names[key] for key in names}  # pyright: ignore
    except (TypeError, ValueError) as error:
        raise DataError(f"{file} has no usable 'names': {_EXPECTED}") from error
    if "nc" in content and content["nc"] != str(len(classes)):
        raise DataError(f"{file} says nc: {content['nc']}, but names {len(classes)} classes")
    return YoloNames(file=file, classes=_checked(classes, file), content=content)


def _checked(classes: dict[int, Any], file: Path) -> dict[int, str]:
    names = list(classes.values())
    if not 0 < len(names) <= MAX_NAMES or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file} has no usable list of classes: {_EXPECTED}")
    if repeated := [name for name in names if names.count(name) > 1][:1]:
        raise DataError(f"{file} names the class '{repeated[0]}' twice; names must differ")
    return dict(sorted(classes.items()))


def split_entry(names: YoloNames, split: str) -> Any:
    """Return what ``data.yaml`` states for a split; None if it states nothing."""
    stated = (names.content.get(name) for name in split_names(split))
    return next((entry for entry in stated if entry), None)


def image_paths(root: Path, names: YoloNames, entry: Any) -> list[Path]:
    """Return the images of a split's entry: a folder, a list of paths, or several of these.

    Raises:
        DataError: If one does not exist, or lies outside ``root``.
    """
    entries = entry if isinstance(entry, list) else [entry]
    paths = [path for each in entries for path in _paths(root, names, each)]
    return sorted(dict.fromkeys(paths))


def _paths(root: Path, names: YoloNames, entry: Any) -> Iterator[Path]:
    place = _resolve(root, names, entry)
    if is_dir(place):
        yield from (place / name for name in find_image_paths(place))
        return
    for line in decode_lines(read_label_file(place), str(place)):
        path = _existing(
            inside(base, line.strip()) for base in (place.parent, root) if base.is_relative_to(root)
        )
        if path is None:
            raise DataError(
                f"{place} lists {line.strip()[:100]!r}: expected an image in {root}, relative to "
                "the list"
            )
        yield path


def _resolve(root: Path, names: YoloNames, entry: Any) -> Path:
    stated = str(entry) if isinstance(entry, str) else ""
    base = names.content.get("path")
    joined = os.path.join(base, stated) if isinstance(base, str) else stated  # noqa: PTH118
    below = _below(root, joined)
    # Roboflow's exports state ../train/images for the file's own folder.
    candidates = [below, joined, stated, stated.removeprefix("../")]
    place = _existing(inside(root, each) for each in candidates if each)
    if place is None:
        raise DataError(
            f"{names.file} states {stated[:100]!r} for a split: expected a folder or list of "
            f"images inside {root}; correct it, or name the images with --data.train-images ..."
        )
    return place


def _below(root: Path, stated: str) -> str:
    """Return an absolute path relative to ``root`` if it lies below it; otherwise nothing."""
    path, absolute = Path(os.path.normpath(stated)), Path(os.path.abspath(root))  # noqa: PTH100
    return path.relative_to(absolute).as_posix() if path.is_relative_to(absolute) else ""


def _existing(candidates: Iterator[Path | None]) -> Path | None:
    found = (path for path in candidates if path is not None and (is_dir(path) or is_file(path)))
    return next(found, None)
