"""Find the images of a split and their label files, which have the same name.

===============================  =============================================
images                           labels
===============================  =============================================
``images/SPLIT/NAME.jpg``        ``labels/SPLIT/NAME.txt`` (``annotations/``)
``SPLIT/images/NAME.jpg``        ``SPLIT/labels/NAME.txt`` (``annotations/``)
``SPLIT/NAME.jpg``               ``SPLIT/NAME.txt``
===============================  =============================================
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pcd_hub.data.labelled.formats.found import FoundSplit
from pcd_hub.data.sources.files import list_subfolders, walk
from pcd_hub.data.sources.other_files import is_image, suffix
from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import DataError

LABEL_FOLDERS = ("labels", "annotations", "Annotations")
IMAGE_FOLDERS = ("images", "JPEGImages")
_OTHER_NAMES = {"val": ("valid", "validation"), "train": ("training",), "test": ("testing",)}


@dataclass(kw_only=True)
class Pairs:
    """Images and label files of one split."""

    images: dict[str, Path]
    """By path without suffix, relative to the folder of the images; sorted."""
    labels: dict[str, Path]
    """By path without suffix, relative to the folder of the labels."""
    folder: Path
    """Folder of the labels."""

    def unlabelled(self) -> list[Path]:
        """Return the images without a label file."""
        return [path for name, path in self.images.items() if name not in self.labels]

    def unmatched(self) -> list[str]:
        """Return the label files without an image."""
        return [str(path) for name, path in self.labels.items() if name not in self.images]


def split_names(split: str) -> tuple[str, ...]:
    """Return a split's name and the other names that tools give its folder."""
    return (split, *_OTHER_NAMES.get(split, ()))


def find_split_folder(parent: Path, split: str) -> Path:
    """Return the folder of a split.

    Raises:
        DataError: If it does not exist; the message lists the existing splits.
    """
    folders = (parent / name for name in split_names(split))
    found = next(filter(is_dir, folders), None)
    if found is None:
        splits = list_subfolders(parent) if is_dir(parent) else []
        raise DataError(
            f"there is no {parent / split}; {parent} has {', '.join(splits[:10]) or 'no splits'}; "
            "name the splits with --data.train-split and --data.test-split"
        )
    return found


def find_split_list(folder: Path, split: str) -> Path | None:
    """Return the list of a split's images, ``SPLIT.txt``; None if there is none."""
    lists = (folder / f"{name}.txt" for name in split_names(split))
    return next(filter(is_file, lists), None)


def find_folders(root: Path, split: str) -> tuple[Path, Path] | None:
    """Return the folders of a split's images and labels; None if no row of the table fits."""
    for name in split_names(split):
        for labels in LABEL_FOLDERS:
            for images in IMAGE_FOLDERS:
                if is_dir(root / images / name) and is_dir(root / labels / name):
                    return root / images / name, root / labels / name
                if is_dir(root / name / images) and is_dir(root / name / labels):
                    return root / name / images, root / name / labels
        if is_dir(root / name):
            return root / name, root / name
    return None


def split_folders(root: Path, split: str) -> tuple[Path, Path]:
    """Return the folders of a split's images and labels.

    Raises:
        DataError: If they are missing; it lists the existing folders.
    """
    if found := find_folders(root, split):
        return found
    folders = list_subfolders(root) if is_dir(root) else []
    raise DataError(
        f"{root} has no split '{split}' (its folders: {', '.join(folders[:10]) or 'none'}): "
        f"expected images/{split} and labels/{split}, {split}/images and {split}/labels, or images "
        f"and labels in {split}; see docs/labels.md"
    )


def find_pairs(images: Path, labels: Path, kind: str, *, not_labels: tuple[str, ...] = ()) -> Pairs:
    """Pair the images below one folder with the label files below another.

    Args:
        images: Folder of the images.
        labels: Folder of the labels; it may be the same.
        kind: Suffix of a label file, such as ``.txt``.
        not_labels: Names of files with this suffix that are no labels.

    Raises:
        DataError: If there is no image, two images have one name, or no image has a label file.
    """
    found: dict[str, Path] = {}
    for path in sorted(path for path in walk(images) if is_image(path)):
        name = path.removesuffix(path[-len(suffix(path)) :])
        if name in found:
            raise DataError(
                f"{images / path} and {found[name]} have the same name; rename or remove one"
            )
        found[name] = images / path
    if not found:
        raise DataError(f"{images} has no image at any depth: expected the images of the split")
    files = {
        path[: -len(kind)]: labels / path
        for path in sorted(walk(labels))
        if suffix(path) == kind and path.rpartition("/")[2] not in not_labels
    }
    if not found.keys() & files.keys():
        raise DataError(
            f"none of the {len(found)} images in {images} has a label file in {labels}: expected "
            f"the same name with {kind} ({len(files)} such files have other names)"
        )
    return Pairs(images=found, labels=files, folder=labels)


def read_pairs(pairs: Pairs, add: Callable[[FoundSplit, Path, Path], None]) -> FoundSplit:
    """Read the images that have a label file.

    Args:
        pairs: Images and label files.
        add: Adds an image with the objects of its label file to the split.
    """
    found = FoundSplit(
        place=pairs.folder, unlabelled=pairs.unlabelled(), unmatched=pairs.unmatched()
    )
    for name, image in pairs.images.items():
        if name in pairs.labels:
            add(found, image, pairs.labels[name])
    return found


def inside(root: Path, name: str) -> Path | None:
    """Join a name from a label file to its folder; None if it leads out of the folder.

    A name with Windows's separators is read too. Links in the folder are followed, as everywhere.
    """
    parts = name.replace("\\", "/").split("/")
    kept: list[str] = []
    for part in parts:
        if part == ".." and not kept:
            return None
        if part == "..":
            kept.pop()
        elif part not in {"", "."}:
            kept.append(part)
    absolute = name.startswith(("/", "\\")) or parts[0].endswith(":") or "\0" in name
    return None if absolute or not kept else root.joinpath(*kept)
