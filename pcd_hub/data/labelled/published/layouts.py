"""Write the archives of published data sets as folders that the readers know.

========================  ====================================================================
``images/SPLIT/``,        of sets with masks: ``masks/SPLIT/`` and ``classes.json``
                          (``labelled/segmentation.py``)
``SPLIT/CLASS/``          of sets with classes (``labelled/classification.py``)
========================  ====================================================================

Only the images that are used are read from the archives; no file is decoded or changed.
"""

import hashlib
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, cast

from pcd_hub.errors import DataError

TRAINING_PETS_PER_BREED = 20
EUROSAT_IMAGES_PER_CLASS = 200
"""In each of the two splits."""


def write_oxford_pets(archives: Sequence[Path], folder: Path) -> None:
    """Write images and trimaps: pet, background, and a border that is ignored.

    The test split is the published one. The training split has the first
    ``TRAINING_PETS_PER_BREED`` images of each breed in ``trainval.txt``.
    """
    images, annotations = archives
    lists = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
    text = {name: raw.decode() for name, raw in read_members(annotations, lists.values())}
    rows = {split: list(map(str.split, text[name].splitlines())) for split, name in lists.items()}
    rows["train"] = _first_of_each(rows["train"], TRAINING_PETS_PER_BREED)
    names = [(split, row[0]) for split in rows for row in rows[split]]
    copy_members(
        images, {f"images/{n}.jpg": folder / f"images/{split}/{n}.jpg" for split, n in names}
    )
    copy_members(
        annotations,
        {f"annotations/trimaps/{n}.png": folder / f"masks/{split}/{n}.png" for split, n in names},
    )
    classes = {"classes": {"1": "pet", "2": "background"}, "ignore_index": 3}
    (folder / "classes.json").write_text(json.dumps(classes) + "\n")


def _first_of_each(rows: Sequence[list[str]], count: int) -> list[list[str]]:
    """Return the first rows of each class, which the second column names."""
    seen: Counter[str] = Counter()
    chosen = []
    for row in rows:
        seen[row[1]] += 1
        if seen[row[1]] <= count:
            chosen.append(row)
    return chosen


def write_eurosat(archives: Sequence[Path], folder: Path) -> None:
    """Write two splits, which EuroSAT does not have.

    Of each class, the first ``EUROSAT_IMAGES_PER_CLASS`` images in the order of the SHA-256 of
    their file names are the test split, and as many that follow are the training split.
    """
    (archive,) = archives
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.endswith(".jpg")]
    by_class: dict[str, list[str]] = {}
    for name in sorted(names, key=_drawn):
        by_class.setdefault(name.split("/")[-2], []).append(name)
    number = EUROSAT_IMAGES_PER_CLASS
    places = {}
    for label, drawn in by_class.items():
        for split, chosen in (("test", drawn[:number]), ("train", drawn[number : 2 * number])):
            places |= {name: folder / split / label / name.rpartition("/")[2] for name in chosen}
    copy_members(archive, places)


def _drawn(name: str) -> str:
    return hashlib.sha256(name.rpartition("/")[2].encode()).hexdigest()


def write_dtd(archives: Sequence[Path], folder: Path) -> None:
    """Write the training and the test images of the first of the ten published partitions."""
    (archive,) = archives
    lists = {f"dtd/labels/{split}1.txt": split for split in ("train", "test")}
    places = {}
    for name, raw in read_members(archive, lists):
        for line in raw.decode().split():
            places[f"dtd/images/{line}"] = folder / lists[name] / line
    copy_members(archive, places)


def copy_members(archive: Path, places: Mapping[str, Path]) -> None:
    """Write files of an archive to their places.

    Raises:
        DataError: If the archive lacks one.
    """
    for name, raw in read_members(archive, places):
        places[name].parent.mkdir(parents=True, exist_ok=True)
        places[name].write_bytes(raw)


def read_members(archive: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of files of a tar or zip archive, in the archive's order.

    Raises:
        DataError: If the archive lacks one.
    """
    wanted = set(names)
    left = set(wanted)
    read = _zip_files if zipfile.is_zipfile(archive) else _tar_files
    for name, content in read(archive):
        if name in left:
            yield name, content()
            left.discard(name)
        if not left:
            return
    raise DataError(
        f"{archive} has no {min(left)} ({len(left)} of {len(wanted)} files are missing); remove "
        "it, then start the same command again"
    )


def _zip_files(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            yield name, partial(opened.read, name)


def _tar_files(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.isfile():
                file = cast("IO[bytes]", opened.extractfile(member))
                yield member.name.removeprefix("./"), file.read
