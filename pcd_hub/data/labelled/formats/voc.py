"""Read Pascal VOC's labels: one XML file per image, boxes from the first to the last pixel.

Pixels are counted from 1, and the last belongs to the box: ``xmin`` 1 and ``xmax`` 20 is the box
from 0 to 20.
"""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

from pcd_hub.data.labelled.formats.found import (
    FoundObject,
    FoundSplit,
    check_stated_size,
    flat,
    upright_size,
)
from pcd_hub.data.labelled.formats.pairs import (
    Pairs,
    find_pairs,
    find_split_list,
    read_pairs,
    split_folders,
)
from pcd_hub.data.labelled.formats.xml_files import number, read_xml, text, whole
from pcd_hub.data.sources.files import read_lines
from pcd_hub.errors import DataError

LISTS = Path("ImageSets", "Main")
"""Folder of the lists of images."""
_MARKED = re.compile(r"(.+?)\s+(1|0|-1)")


def read_voc(root: Path, split: str) -> FoundSplit:
    """Read a split: of ``ImageSets/Main/SPLIT.txt`` if it exists, or the folder of its name.

    Images without an XML file are left out.

    Raises:
        DataError: If the split or a file is missing or invalid.
    """
    if listed := find_split_list(root / LISTS, split):
        return read_pairs(_listed_pairs(root, listed), _add)
    return read_voc_folders(*split_folders(root, split))


def read_voc_folders(images: Path, labels: Path) -> FoundSplit:
    """Read the XML files in one folder of the images in another (or the same)."""
    return read_pairs(find_pairs(images, labels, ".xml"), _add)


def _listed_pairs(root: Path, listed: Path) -> Pairs:
    """Pair the names of a list; a name may be followed by 1, 0 or -1, as in lists of one class."""
    pairs = find_pairs(root / "JPEGImages", root / "Annotations", ".xml")
    names = []
    for line in read_lines(listed):
        marked = _MARKED.fullmatch(line.strip())
        if marked is None or line.strip() in pairs.images:
            names.append(line.strip())
        elif marked[2] != "-1":
            names.append(marked[1])
    for name in names:
        for files, what in ((pairs.images, "JPEGImages"), (pairs.labels, "Annotations")):
            if name not in files:
                raise DataError(f"{listed} lists {name!r}, which {root / what} lacks; add it")
    return Pairs(
        images={name: pairs.images[name] for name in names},
        labels={name: pairs.labels[name] for name in names},
        folder=listed,
    )


def _add(found: FoundSplit, image: Path, labels: Path) -> None:
    root = read_xml(labels)
    if root.tag != "annotation":
        raise DataError(f"{labels} holds <{root.tag[:40]}>: expected Pascal VOC's <annotation>")
    size = upright_size(image)
    stated = (whole(root.findtext("size/width")), whole(root.findtext("size/height")))
    check_stated_size(image, size, stated, labels)
    found.files.append(labels)
    entries = enumerate(root.findall("object"), 1)
    places = ((f"{labels}, object {position}", entry) for position, entry in entries)
    found.add(image, size, ((place, _parse(entry, place)) for place, entry in places))


def _parse(entry: Element, place: str) -> FoundObject | str:
    """Parse an object, or describe what is wrong with it; its parts are not objects."""
    label, box = text(entry, "name"), entry.find("bndbox")
    if not label:
        return "no <name>: expected the object's class"
    if box is None:
        return f"'{label[:60]}' has no <bndbox>"
    xmin, ymin, xmax, ymax = (
        number(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    return FoundObject(
        label=label,
        box=[xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1],
        segmentation=_polygon(entry.find("polygon")),
        is_difficult=text(entry, "difficult", "0") not in {"0", ""},
        place=place,
    )


def _polygon(entry: Element | None) -> list[list[float]] | None:
    """Return the polygon that some tools add, x1, y1, x2, y2 ..., counted from 1 too."""
    if entry is None:
        return None
    points, position = [], 1
    while entry.find(f"x{position}") is not None:
        x, y = (number(entry.findtext(f"{axis}{position}")) for axis in "xy")
        points.append((x - 1, y - 1))
        position += 1
    return [flat(points)]
