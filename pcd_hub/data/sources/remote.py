"""Images behind URLs, read through fsspec: ``s3://``, ``gs://``, ``https://``, ``hf://`` ..."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from pcd_hub.data.decoding import BrokenImageError, ResultT, decode, describe_error
from pcd_hub.data.sources.files import decode_lines, hash_names
from pcd_hub.data.sources.names import PackedNames
from pcd_hub.data.sources.other_files import OtherFiles, is_image
from pcd_hub.data.sources.protocols import ImageSource
from pcd_hub.errors import DataError, nearest

MAX_IMAGE_BYTES = 2**30
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "requests aiohttp"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    **dict.fromkeys(("oss",), "ossfs"),
    **dict.fromkeys(("hdfs",), "pyarrow"),
}


def is_remote(uri: str) -> bool:
    """Check whether a source is a URL (``SCHEME://...``)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri) is not None


def url_path(url: str) -> str:
    """Return the path of a URL, without the query of https."""
    return urlsplit(url).path if url.startswith(("http://", "https://")) else url


def filesystem(url: str) -> Any:
    """Return the file system of a URL, the same object each time in one process.

    Raises:
        DataError: If its kind is unknown or needs a library that is missing.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        package = _PACKAGES.get(scheme, "")
        remedy = f"pip install {package}" if package else describe_error(error)
        raise DataError(
            f"{shown(url)}: the library that reads {scheme}:// is not installed; {remedy}"
        ) from error
    except ValueError as error:
        known = fsspec.available_protocols()
        raise DataError(
            f"{shown(url)}: unknown kind of URL '{scheme}'{nearest(scheme, known)}: expected s3, "
            "gs, https or another of fsspec"
        ) from error


def shown(url: str) -> str:
    """Return a URL for messages, without password and query, which may hold a token."""
    return re.sub(r"://[^/@]*@", "://", url).partition("?")[0]


def _reset_after_fork() -> None:
    """Forget the event loop of the parent, whose thread a forked worker does not have."""
    import fsspec.asyn

    fsspec.asyn.iothread[0] = None
    fsspec.asyn.loop[0] = None
    fsspec.asyn.reset_lock()


def watch_forks() -> None:
    """Make asynchronous file systems work in forked workers; recent versions of fsspec do so."""
    global _watching  # noqa: PLW0603 - once for each process
    if hasattr(os, "register_at_fork") and not _watching:
        os.register_at_fork(after_in_child=_reset_after_fork)
        _watching = True


_watching = False


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn every failure of a file system in this block into one line.

    Raises:
        DataError: For any other exception.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # each file system has exceptions of its own
        raise DataError(f"{shown(url)} cannot be read: {describe_error(error)}") from error


def read_remote(url: str, offset: int = 0, length: int | None = None) -> bytes:
    """Read a part of a remote file."""
    end = None if length is None else offset + length
    return filesystem(url).cat_file(url, start=offset or None, end=end)


def open_remote(url: str) -> Any:
    """Open a remote file for reading from its start to its end."""
    return filesystem(url).open(url, "rb")


def match_remote(pattern: str) -> "RemoteImages | list[str]":
    """Find the images that match a pattern; if there are none, everything that matches.

    Raises:
        DataError: If nothing matches.
    """
    watch_forks()
    with reading(pattern):
        system = filesystem(pattern)
        found = system.glob(pattern, detail=True)
    sizes = {
        system.unstrip_protocol(path): facts.get("size") or -1
        for path, facts in sorted(found.items())
        if not path.rpartition("/")[2].startswith(".")
    }
    if not sizes:
        raise DataError(f"nothing matches {shown(pattern)}: expected a pattern such as 's3://B/*'")
    root = pattern.partition("*")[0].rpartition("/")[0] + "/"
    if images := [url for url in sizes if is_image(url_path(url))]:
        paths = [url.removeprefix(root) for url in images]
        return RemoteImages(root, paths, [sizes[url] for url in images])
    return list(sizes)


def open_remote_images(url: str) -> "RemoteImages":
    """Open a remote folder, or a remote list of images (``.txt``).

    Raises:
        DataError: If it cannot be read or has no image.
    """
    watch_forks()
    if not url_path(url).endswith(".txt"):
        return RemoteImages.from_folder(url)
    with reading(url):
        content = read_remote(url)
    return RemoteImages.from_list(url, decode_lines(content, shown(url)))


class RemoteImages(ImageSource):
    """Images behind URLs, each read with one request.

    Args:
        root: The URLs' common beginning.
        paths: The rest of each URL.
        sizes: Their sizes in bytes; -1 if not known.
    """

    def __init__(self, root: str, paths: Sequence[str], sizes: Sequence[int] | None = None) -> None:
        watch_forks()
        filesystem(root)
        self._root = root
        self._paths = PackedNames(paths)
        self._sizes = np.asarray([-1] * len(paths) if sizes is None else sizes, np.int64)

    @classmethod
    def from_folder(cls, url: str) -> "RemoteImages":
        """List every image below a remote folder.

        Raises:
            DataError: If it cannot be listed or has no image.
        """
        watch_forks()
        root = url.rstrip("/") + "/"
        with reading(url):
            system = filesystem(url)
            prefix = system._strip_protocol(root).rstrip("/") + "/"
            found = system.find(root, detail=True)
        others, images = OtherFiles(), []
        for path, facts in sorted(found.items()):
            name = path.removeprefix(prefix)
            if any(part.startswith(".") for part in name.split("/")):
                continue
            if is_image(url_path(name)):
                images.append((name, facts.get("size") or -1))
            else:
                others.add(url_path(name))
        if not images:
            expected = others.describe() or f"{len(found)} other files; expected a folder of images"
            raise DataError(f"{shown(url)} has no image at any depth: {expected}")
        others.warn(shown(url))
        return cls(root, [name for name, _ in images], [size for _, size in images])

    @classmethod
    def from_list(cls, url: str, lines: list[str]) -> "RemoteImages":
        """Open the paths in ``lines``, relative to the folder of the list ``url``."""
        if not lines:
            raise DataError(f"{shown(url)} lists no image: expected one path per line")
        root = url.rpartition("/")[0] + "/"
        return cls(root, [line.removeprefix(root) for line in lines])

    def __len__(self) -> int:
        return len(self._paths)

    def url(self, index: int) -> str:
        """Return the URL of image ``index``."""
        path = self._paths[index]
        return path if is_remote(path) else self._root + path

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Decode image ``index`` by ``to_image``; see ``ImageSource.read``."""
        url = self.url(index)
        if self._sizes[index] > MAX_IMAGE_BYTES:
            reason = f"{self._sizes[index]} bytes: expected at most {MAX_IMAGE_BYTES}"
            raise BrokenImageError(shown(url), reason)
        try:
            content = read_remote(url)
        except Exception as error:  # each file system has exceptions of its own
            raise BrokenImageError(shown(url), describe_error(error)) from error
        if not content:
            raise BrokenImageError(shown(url), "the file is empty")
        return decode({"bytes": content, "path": None}, shown(url), to_image)

    def name(self, index: int) -> str:
        """Return the path of image ``index``, relative to the folder."""
        return self._paths[index]

    def fingerprint(self) -> str:
        """Fingerprint all paths, and all sizes that the listing gives."""
        paths, sizes = hash_names(self._paths), hash_names(map(str, self._sizes.tolist()))
        return f"{len(self)} remote files, paths sha256 {paths}, sizes sha256 {sizes}"
