"""Classes of the images of any source, by their names: from a CSV file, or from their folders."""

import csv
import hashlib
import io
from typing import NamedTuple

from pcd_hub.data.sources.protocols import ImageSource, ImageStream
from pcd_hub.data.sources.uris import local_path
from pcd_hub.errors import DataError
from pcd_hub.files.read import read_bounded

FOLDERS = "folders"
"""Value of ``labels`` if the first folder in an image's name is its class."""

_MAX_BYTES = 2**28


class ImageClasses(NamedTuple):
    """The class of every image of a source."""

    labels: list[int]
    """Index in ``classes``, by image."""
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a text that changes when the class of an image changes."""
        digest = hashlib.sha256(repr((self.labels, self.classes)).encode()).hexdigest()
        return f"{len(self.classes)} classes, sha256 {digest}"


def image_classes(source: ImageSource | ImageStream, labels: str) -> ImageClasses:
    """Return the class of every image of a source.

    Args:
        source: The images.
        labels: A CSV file with the columns ``file`` and ``class``, where ``file`` is the image's
            path relative to its source; or ``folders``.

    Raises:
        DataError: If the file cannot be read, an image has no class, or there are fewer than two
            classes.
    """
    if not isinstance(source, ImageSource):
        raise DataError("a stream has no names of images: expected files, for their classes")
    names = [source.name(index) for index in range(len(source))]
    by_name = (
        {name: name.partition("/")[0] for name in names if "/" in name}
        if labels == FOLDERS
        else _read_csv(labels)
    )
    if missing := [name for name in names if name not in by_name]:
        raise DataError(
            f"{labels} has no class of {missing[0]} ({len(missing)} of {len(names)} images); add "
            "them, or leave these images out"
        )
    classes = tuple(sorted({by_name[name] for name in names}))
    if len(classes) < 2:
        raise DataError(f"{labels} has {len(classes)} class of these images, expected at least 2")
    index = {name: number for number, name in enumerate(classes)}
    return ImageClasses([index[by_name[name]] for name in names], classes)


def _read_csv(file: str) -> dict[str, str]:
    try:
        text = read_bounded(local_path(file), _MAX_BYTES).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if not {"file", "class"} <= set(rows.fieldnames or ()):
            raise DataError(
                f"{file} has the columns {', '.join(rows.fieldnames or ()) or 'none'}, expected "
                "file and class"
            )
        return {row["file"]: row["class"] for row in rows if (row["class"] or "").strip()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is no readable CSV file ({error})") from error
    except ValueError as error:
        raise DataError(str(error)) from error
