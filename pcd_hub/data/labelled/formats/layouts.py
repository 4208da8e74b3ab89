"""Recognise the format of a data set's labels by the content of its folder."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pcd_hub.data.labelled.formats.cvat import find_cvat
from pcd_hub.data.labelled.formats.pairs import find_folders, find_split_list, split_names
from pcd_hub.data.labelled.formats.voc import LISTS
from pcd_hub.data.labelled.formats.yolo_names import NAME_FILES, find_yaml
from pcd_hub.data.sources.files import list_subfolders
from pcd_hub.data.sources.other_files import suffix
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import DataError

log = logging.getLogger("pcd_hub")

LabelFormat = Literal["coco", "yolo", "voc", "labelme", "cvat"]

LAYOUTS = {
    "coco": "annotations/instances_{split}.json, or {split}/_annotations.coco.json",
    "yolo": "data.yaml with images/{split} and labels/{split}/NAME.txt",
    "voc": "Annotations/NAME.xml with ImageSets/Main/{split}.txt, or {split}/NAME.xml",
    "labelme": "{split}/NAME.json beside NAME.jpg",
    "cvat": "annotations.xml with subsets, or {split}/annotations.xml",
}
"""The files that each format is recognised by."""

_LOOKED_AT = 1000
"""Files of a folder that are looked at."""
_HEAD_BYTES = 1 << 16


def find_format(root: Path, split: str, *, others: Mapping[str, str] | None = None) -> LabelFormat:
    """Return the format of the labels below ``root``.

    COCO's files come first: their layout is the oldest here, and converters leave it beside others.

    Args:
        root: Folder of the data set.
        split: Name of a split.
        others: Layouts of formats that an error names too.

    Raises:
        DataError: If no layout fits, or several do.
    """
    if not is_dir(root):
        raise DataError(f"there is no folder {root}; name the data set's with --data.source")
    found: list[LabelFormat] = [name for name, fits in _EVIDENCE.items() if fits(root, split)]
    if found[:1] == ["coco"]:
        if found[1:]:
            more = " and ".join(found[1:])
            log.info("%s has COCO labels, which are read, and %s ones", root, more)
        return "coco"
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{root} has labels in the formats {' and '.join(found)}; choose with --data.format"
        )
    layouts = {**(others or {}), **LAYOUTS}
    expected = "; ".join(f"{name}: {text.format(split=split)}" for name, text in layouts.items())
    raise DataError(
        f"{root} has no labels of split '{split}' in a known layout, found {describe(root)}; "
        f"expected {expected} (docs/labels.md)"
    )


def find_format_of(labels: Path) -> LabelFormat:
    """Return the format of a file of labels, or of the label files in a folder.

    Raises:
        DataError: If it is unknown.
    """
    if is_dir(labels):
        kinds: dict[str, LabelFormat] = {".txt": "yolo", ".xml": "voc", ".json": "labelme"}
        found: list[LabelFormat] = [name for kind, name in kinds.items() if _has(labels, kind)]
        if len(found) == 1:
            return found[0]
        raise DataError(
            f"{labels} has {describe(labels)}: expected label files of one kind, .txt, .xml or "
            ".json; choose with --data.format"
        )
    return "cvat" if suffix(labels.name) == ".xml" else "coco"


def find_coco(root: Path, split: str) -> tuple[Path, Path] | None:
    """Return folder of the images and JSON file of Roboflow's layout; None if there is no file."""
    for name in split_names(split):
        if is_file(file := root / name / "_annotations.coco.json"):
            return root / name, file
    return None


def _is_coco(root: Path, split: str) -> bool:
    return find_coco(root, split) is not None or any((root / "annotations").glob("*.json"))


def _is_yolo(root: Path, split: str) -> bool:
    if find_yaml(root) is not None:
        return True
    folders = find_folders(root, split)
    return folders is not None and _has(folders[1], ".txt")


def _is_voc(root: Path, split: str) -> bool:
    if find_split_list(root / LISTS, split):
        return True
    folders = find_folders(root, split)
    return folders is not None and _has(folders[1], ".xml")


def _is_labelme(root: Path, split: str) -> bool:
    folders = find_folders(root, split)
    return folders is not None and _has(folders[1], ".json")


def _is_cvat(root: Path, split: str) -> bool:
    return is_file(root / "annotations.xml") or find_cvat(root, split) is not None


_EVIDENCE: dict[LabelFormat, Callable[[Path, str], bool]] = {
    "coco": _is_coco,
    "yolo": _is_yolo,
    "voc": _is_voc,
    "labelme": _is_labelme,
    "cvat": _is_cvat,
}


def _has(folder: Path, kind: str) -> bool:
    """Check whether a folder has label files of this suffix, at its first or second level."""
    files = itertools.islice(itertools.chain(folder.glob("*"), folder.glob("*/*")), _LOOKED_AT)
    return any(suffix(path.name) == kind and _may_be_labels(path) for path in files)


def _may_be_labels(path: Path) -> bool:
    if path.name in {*NAME_FILES, "annotations.xml", "_annotations.coco.json"}:
        return False
    return suffix(path.name) != ".json" or _is_labelme_file(path)


def _is_labelme_file(path: Path) -> bool:
    if not is_file(path):
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return b'"shapes"' in head or b'"imageData"' in head


def describe(root: Path) -> str:
    """Describe in a few words what a folder has: its folders, and its files by suffix."""
    folders = list_subfolders(root)
    files = itertools.islice((path for path in root.iterdir() if is_file(path)), _LOOKED_AT)
    kinds = Counter(suffix(path.name) or "no suffix" for path in files)
    parts = [f"the folders {', '.join(folders[:8])}"] if folders else []
    parts += [f"{count} {kind}" for kind, count in kinds.most_common(5)]
    return ", ".join(parts) or "nothing"
