"""Read CVAT's labels, "CVAT for images 1.1": one XML file with boxes, polygons and masks."""

import math
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from pcd_hub.data.labelled.coco_validation import MAX_PIXELS, MAX_SIDE
from pcd_hub.data.labelled.formats.found import (
    FoundObject,
    FoundSplit,
    check_stated_size,
    flat,
    points_box,
    upright_size,
)
from pcd_hub.data.labelled.formats.pairs import inside, split_names
from pcd_hub.data.labelled.formats.rasters import placed_mask, with_mask
from pcd_hub.data.labelled.formats.xml_files import number, read_xml, whole
from pcd_hub.data.sources.files import walk
from pcd_hub.data.sources.other_files import is_image
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import DataError

_NO_OBJECTS = {"tag", "attribute"}


def find_cvat(root: Path, split: str) -> tuple[Path, Path] | None:
    """Return folder of the images and XML file of a split; None if there is no file."""
    for name in split_names(split):
        for file in (root / name / "annotations.xml", root / "annotations" / f"{name}.xml"):
            if is_file(file):
                images = (root / name / "images", root / name, root / "images" / name)
                return next((folder for folder in images if is_dir(folder)), root), file
        if is_file(root / f"{name}.xml"):
            images = root / "images" / name
            return images if is_dir(images) else root / name, root / f"{name}.xml"
    return None


def read_cvat(root: Path, split: str) -> FoundSplit:
    """Read a split: of its own file, or the images of this subset of ``annotations.xml``.

    Raises:
        DataError: If the split or a file is missing or invalid.
    """
    if found := find_cvat(root, split):
        return read_cvat_file(*found)
    file, images = root / "annotations.xml", root / "images"
    if not is_file(file):
        raise DataError(f"there is no {file} and no {split}/annotations.xml; export it from CVAT")
    return read_cvat_file(images if is_dir(images) else root, file, subset=split)


def read_cvat_file(images: Path, file: Path, *, subset: str | None = None) -> FoundSplit:
    """Read one XML file, or the images of one subset in it.

    Raises:
        DataError: If it is invalid, or an image is missing or outside ``images``.
    """
    root = read_xml(file)
    if root.tag != "annotations":
        raise DataError(f"{file} holds <{root.tag[:40]}>: expected CVAT's <annotations>")
    if root.find("track") is not None:
        raise DataError(f"{file} has tracks of a video; export it as 'CVAT for images 1.1'")
    found = FoundSplit(place=file, files=[file], names=_names(root))
    entries = _of_subset(root.findall("image"), subset, file)
    listed: set[Path] = set()
    for entry in entries:
        path = _path(entry, images, file)
        if path in listed:
            raise DataError(f"{file} has several entries for {path.name}: expected 1; join them")
        listed.add(path)
        _add(found, path, entry)
    if subset is None and is_dir(images):
        files = (images / name for name in sorted(walk(images)) if is_image(name))
        found.unlabelled = [path for path in files if path not in listed]
    return found


def _names(root: Element) -> tuple[str, ...] | None:
    names = [name.text or "" for name in root.findall("meta//labels/label/name")]
    return tuple(dict.fromkeys(names)) or None


def _of_subset(entries: list[Element], subset: str | None, file: Path) -> list[Element]:
    if subset is None:
        kept = entries
    else:
        names = split_names(subset.lower())
        kept = [entry for entry in entries if entry.get("subset", "").lower() in names]
    if not kept:
        subsets = sorted({entry.get("subset", "") for entry in entries} - {""})
        raise DataError(
            f"{file} has no image of the subset '{subset}' (its subsets: "
            f"{', '.join(subsets) or 'none'}): set the subset of each task in CVAT, or name one "
            "file for each split with --data.train-annotations and --data.test-annotations"
        )
    return kept


def _path(entry: Element, images: Path, file: Path) -> Path:
    name, subset = entry.get("name", ""), entry.get("subset", "")
    candidates = [inside(images, name)]
    if subset and candidates[0] is not None:
        candidates.append(inside(images, f"{subset}/{name}"))
    found = next((path for path in candidates if path is not None and is_file(path)), None)
    if found is None:
        raise DataError(
            f"{file}: no image {name[:100]!r} in {images}; add it (export with 'Save images'), or "
            "remove its entry"
        )
    return found


def _add(found: FoundSplit, path: Path, entry: Element) -> None:
    file, size = found.place, upright_size(path)
    check_stated_size(path, size, (whole(entry.get("width")), whole(entry.get("height"))), file)
    places = (
        (f"{file}, {path.name}, shape {position}", shape)
        for position, shape in enumerate(entry, 1)
        if shape.tag not in _NO_OBJECTS
    )
    found.add(path, size, ((place, _parse(shape, size, place)) for place, shape in places))


def _parse(shape: Element, size: tuple[int, int], place: str) -> FoundObject | str:
    """Parse a shape, or describe what is wrong with it."""
    parse = _SHAPES.get(shape.tag)
    if parse is None:
        return f"a {shape.tag[:40]}: expected a box, a polygon or a mask; remove it or draw one"
    if not shape.get("label"):
        return f"a {shape.tag} without label"
    return parse(shape, size, place)


def _box(shape: Element, _: tuple[int, int], place: str) -> FoundObject | str:
    left, top, right, bottom = (number(shape.get(name)) for name in ("xtl", "ytl", "xbr", "ybr"))
    label, degrees = shape.get("label", ""), number(shape.get("rotation", "0"))
    if not math.isfinite(degrees):
        return f"rotation '{shape.get('rotation', '')[:20]}': expected degrees"
    if not degrees:
        return FoundObject(label=label, box=[left, top, right - left, bottom - top], place=place)
    x, y, turned = (left + right) / 2, (top + bottom) / 2, math.radians(degrees)
    cosine, sine = math.cos(turned), math.sin(turned)
    points = [
        (x + cosine * (px - x) - sine * (py - y), y + sine * (px - x) + cosine * (py - y))
        for px, py in ((left, top), (right, top), (right, bottom), (left, bottom))
    ]
    return FoundObject(
        label=label, box=points_box(points), segmentation=[flat(points)], place=place
    )


def _polygon(shape: Element, _: tuple[int, int], place: str) -> FoundObject | str:
    pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
    if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
        return f"points '{shape.get('points', '')[:60]}': expected at least 3, as x,y;x,y;x,y"
    points = [(number(x), number(y)) for x, y in pairs]
    return FoundObject(
        label=shape.get("label", ""),
        box=points_box(points),
        segmentation=[flat(points)],
        place=place,
    )


def _mask(shape: Element, size: tuple[int, int], place: str) -> FoundObject | str:
    """Parse a mask: run lengths, row by row, of a rectangle; the first run is outside."""
    place_values = [number(shape.get(name)) for name in ("left", "top", "width", "height")]
    if not all(0 <= value <= MAX_SIDE and value == int(value) for value in place_values):
        return f"left, top, width, height {place_values} of its mask: expected whole pixels"
    left, top, width, height = map(int, place_values)
    lengths = [number(each) for each in shape.get("rle", "").split(",")]
    valid = all(0 <= length <= MAX_PIXELS and length == int(length) for length in lengths)
    if not valid or sum(lengths) != width * height:
        return f"the run lengths of its mask do not fill its {width} x {height} pixels"
    values = np.arange(len(lengths)) % 2 == 1
    flags = np.repeat(values, np.asarray(lengths, np.int64)).reshape(height, width)
    code = placed_mask(flags, left, top, size)
    if isinstance(code, str):
        return code
    return with_mask(FoundObject(label=shape.get("label", ""), box=[], place=place), code)


_SHAPES: dict[str, Callable[[Element, tuple[int, int], str], FoundObject | str]] = {
    "box": _box,
    "polygon": _polygon,
    "mask": _mask,
}
