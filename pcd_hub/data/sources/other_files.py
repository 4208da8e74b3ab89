"""Files below a folder of images that are not read: videos, archives, other image formats."""

import functools
import importlib.util
import logging
import os
import shlex
from collections import Counter

from PIL import Image

log = logging.getLogger("pcd_hub")

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})
ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".tgz"})
_HEIF = frozenset({".heic", ".heif"})
_AVIF = frozenset({".avif"})
_RAW = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"})
_JPEG_2000 = frozenset({".jp2", ".j2k", ".jpx"})
_REMEDIES = {
    **dict.fromkeys(_HEIF, "pip install pillow-heif"),
    **dict.fromkeys(_AVIF, "pip install --upgrade pillow"),
    **dict.fromkeys(_RAW, "convert camera RAW to JPEG or PNG"),
    **dict.fromkeys(_JPEG_2000, "convert JPEG 2000 to JPEG or PNG"),
    ".jxl": "convert JPEG XL to JPEG or PNG",
}


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the lower-case suffixes of files that are read as images.

    AVIF is among them if Pillow reads it (from 11.3 on), HEIC if pillow-heif is installed.
    """
    found = set(IMAGE_SUFFIXES)
    found |= _AVIF & Image.registered_extensions().keys()
    if importlib.util.find_spec("pillow_heif"):
        found |= _HEIF
    return frozenset(found)


def suffix(name: str) -> str:
    """Return the lower-case suffix of a file's name."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Check whether a file of this name is read as an image."""
    return suffix(name) in image_suffixes()


class OtherFiles:
    """Count the files that are not read as images, by kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, path: str) -> bool:
        """Count a file if it may be meant as images; return whether it is."""
        kind = suffix(path)
        if kind in image_suffixes():
            return False
        group = (
            "video"
            if kind in VIDEO_SUFFIXES
            else "archive"
            if kind in ARCHIVE_SUFFIXES or path.lower().endswith(".tar.gz")
            else _REMEDIES.get(kind)
        )
        if group:
            self._counts[group] += 1
            self._first.setdefault(group, path)
        return group is not None

    def describe(self) -> str:
        """Return one line on all of them, with the remedies; empty if there are none."""
        return "; ".join(
            _line(group, count, self._first[group]) for group, count in self._counts.most_common()
        )

    def warn(self, place: str) -> None:
        """Log in one line that they are not read."""
        if self._counts:
            log.warning("%s: %s", place, self.describe())


def _line(group: str, count: int, first: str) -> str:
    several = "s" if count > 1 else ""
    if group == "video":
        return f"{count} video{several} not read; {frames_command(first)} makes frames"
    if group == "archive":
        return f"{count} archive{several} not read; to read one, add it as a source: {first}"
    kind = suffix(first).removeprefix(".").upper()
    return f"{count} file{several} of {kind} or similar not read, the first is {first}; {group}"


def frames_command(video: str) -> str:
    """Return the command that extracts one frame a second."""
    return f"`mkdir FRAMES && ffmpeg -i {shlex.quote(video)} -vf fps=1 FRAMES/%06d.jpg`"
