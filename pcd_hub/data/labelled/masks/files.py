"""Pair images and files of masks.

====================================  =========================================================
images                                masks
====================================  =========================================================
``images/SPLIT/NAME.jpg``             ``masks/SPLIT/NAME.png``
``SPLIT/images/NAME.jpg``             ``SPLIT/masks/NAME.png``
``JPEGImages/NAME.jpg``               ``SegmentationClass/NAME.png`` (or ``SegmentationClassPNG``),
                                      names in ``ImageSets/Segmentation/SPLIT.txt``
``SPLIT/JPEGImages/NAME.jpg``         ``SPLIT/SegmentationClass/NAME.png``
``SPLIT/NAME.jpg``                    ``SPLIT/NAME_mask.png``, with ``SPLIT/_classes.csv``
====================================  =========================================================
"""

from collections.abc import Collection, Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path

from pcd_hub.data.decoding import as_rgb, decode
from pcd_hub.data.labelled.formats.pairs import find_split_folder, find_split_list, split_names
from pcd_hub.data.labelled.masks.class_lists import (
    Colour,
    find_classes,
    read_classes_json,
    read_mask,
)
from pcd_hub.data.labelled.segmentation_set import LabelledImage, LeftOut, SegmentationSet
from pcd_hub.data.sources.files import find_image_paths, read_lines
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import DataError

Files = dict[str, Path]
"""Files by name without suffix, relative to their folder."""

_VOC_MASKS = ("SegmentationClassPNG", "SegmentationClass")  # labelme2voc's second has arrays
_ENDING = "_mask"
LAYOUT = "images/{split} and masks/{split} with classes.json"


def has_masks(root: Path, split: str) -> bool:
    """Check whether a layout of the table at the top of this file fits the folder."""
    return any(
        is_dir(folder / "masks") or _voc_masks(folder) or is_file(folder / "_classes.csv")
        for folder in _folders(root, split)
    )


def open_mask_folder(root: Path, split: str, *, strict: bool = True) -> SegmentationSet:
    """Open the masks of one split in any layout of the table at the top of this file.

    Args:
        root: Folder of the data set.
        split: Name of the split.
        strict: Raise an error for an image without mask or a mask without image; otherwise leave
            them out.

    Raises:
        DataError: If the split or the list of classes is missing or invalid.
    """
    classes = find_classes(*(root / name for name in split_names(split)), root)
    is_voc = next((folder for folder in _folders(root, split) if _voc_masks(folder)), None)
    if classes is None and is_voc:
        raise DataError(
            f"{is_voc} names no classes: expected labelmap.txt, class_names.txt or classes.json; "
            "voc:DIR has the 21 of Pascal VOC itself"
        )
    classes = classes or read_classes_json(root / "classes.json")
    images, masks, place = _find_files(root, split)
    rows, left_out = pair(images, masks, place, strict=strict, colours=classes.colours)
    return SegmentationSet(
        rows,
        name=f"{root.resolve().name}/{split}",
        classes=classes.names,
        table=classes.table,
        left_out=left_out,
    )


def _folders(root: Path, split: str) -> list[Path]:
    return [root, *(root / name for name in split_names(split))]


def _voc_masks(folder: Path) -> Path | None:
    return next((folder / name for name in _VOC_MASKS if is_dir(folder / name)), None)


def _find_files(root: Path, split: str) -> tuple[Files, Files, Path]:
    """Return images, masks, and the folder that errors name."""
    is_first = is_dir(root / "images") and is_dir(root / "masks")
    if not is_first and (masks := _voc_masks(root)):
        return (*_listed(root, masks, split), root)
    for folder in [] if is_first else _folders(root, split)[1:]:
        if masks := _voc_masks(folder):
            return name_files(folder / "JPEGImages"), name_files(masks), folder
        if is_file(folder / "_classes.csv"):
            return (*_beside(folder), folder)
        if is_dir(folder / "images") and is_dir(folder / "masks"):
            return name_files(folder / "images"), name_files(folder / "masks"), folder
    return split_files(root / "images", split), split_files(root / "masks", split), root


def _listed(root: Path, masks: Path, split: str) -> tuple[Files, Files]:
    lists = root / "ImageSets" / "Segmentation"
    listed = find_split_list(lists, split)
    if listed is None:
        found = sorted(path.name for path in lists.glob("*.txt"))
        raise DataError(
            f"there is no {lists / split}.txt ({lists} has {', '.join(found[:10]) or 'no lists'}); "
            "name the split with --data.train-split or --data.test-split"
        )
    names = [line.strip() for line in read_lines(listed)]
    images, labels = name_files(root / "JPEGImages"), name_files(masks)
    if missing := [name for name in names if name not in images and name not in labels]:
        raise DataError(f"{listed} lists {missing[0]!r}, which JPEGImages lacks; add or remove it")
    return _only(images, names), _only(labels, names)


def _only(files: Files, names: Collection[str]) -> Files:
    return {name: files[name] for name in names if name in files}


def _beside(folder: Path) -> tuple[Files, Files]:
    files = name_files(folder)
    masks = {
        name.removesuffix(_ENDING): path for name, path in files.items() if name.endswith(_ENDING)
    }
    return {name: path for name, path in files.items() if not name.endswith(_ENDING)}, masks


def split_files(parent: Path, split: str) -> Files:
    """Return the image files of a split by their relative path without suffix.

    Raises:
        DataError: If there is none, or two have one name.
    """
    return name_files(find_split_folder(parent, split))


def name_files(folder: Path) -> Files:
    """Return the image files below a folder by their relative path without suffix.

    Raises:
        DataError: If there is none, or two have one name.
    """
    files: Files = {}
    for path in map(folder.joinpath, find_image_paths(folder)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise DataError(f"{path} and {files[name]} have the same name; rename or remove one")
        files[name] = path
    return files


def pair(
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    folder: Path,
    *,
    strict: bool = True,
    colours: Mapping[Colour, int] | None = None,
) -> tuple[list[LabelledImage], LeftOut]:
    """Pair images and masks of the same name; return them, and what is left over.

    Args:
        images: Images by name.
        masks: Masks by name.
        folder: Folder that an error names.
        strict: Raise an error if one is left over.
        colours: Values by colour, if the masks are coloured.

    Raises:
        DataError: If an image or a mask is left over, or there is no pair.
    """
    unlabelled, unmatched = sorted(images.keys() - masks), sorted(masks.keys() - images)
    for left, files, kind in ((unlabelled, images, "mask"), (unmatched, masks, "image")):
        if left and (strict or len(left) == len(files)):
            raise DataError(
                f"{files[left[0]]} has no {kind} of the same name in {folder} "
                f"({len(left)} of {len(files)} have none); add or remove it"
            )
    left_out = LeftOut(
        unlabelled=tuple(str(images[name]) for name in unlabelled),
        unmatched=tuple(str(masks[name]) for name in unmatched),
    )
    both = [name for name in images if name in masks]
    return [labelled_image(images[name], masks[name], colours) for name in both], left_out


def labelled_image(
    image: Path, mask: Path, colours: Mapping[Colour, int] | None = None
) -> LabelledImage:
    """Return an image and its mask, two files."""
    return LabelledImage(
        name=str(image),
        path=image,
        image=partial(decode, image, str(image), as_rgb),
        mask_name=str(mask),
        mask=partial(read_mask, mask, colours),
        mask_size=partial(decode, mask, str(mask), attrgetter("size")),
    )
