"""Hold out a fixed part of the images, which is never trained on.

The part of an image is decided by a hash of its name, so it does not depend on the order of the
images, on the seed, or on the other images. Images of the same name are numbered. An image is held
out if its hash, as a number from 0 to 1, is at most a threshold:

- the share, for example 0.02;
- for small sets more, ``MIN_EXPECTED`` images or a tenth of the set, whichever is less, because a
  score of two images says nothing;
- at least the second smallest hash, so that two images are held out;
- at most the hash at place ``MAX_IMAGES``: more images would cost training images, and time.

The threshold never rises when images are added, so an image that was trained on is never held out
later. A set of fewer than ``MIN_SET`` images has no held-out part.
"""

import hashlib
import logging
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int64
from PIL import Image

from pcd_hub.data.decoding import ResultT
from pcd_hub.data.sources.protocols import ImageSource, ImageStream

log = logging.getLogger("pcd_hub")

MAX_IMAGES = 128
"""Largest number of held-out images; all of them are scored during training."""
MIN_EXPECTED = 24
"""Expected number of held-out images of a small set, of which it is at most a tenth."""
MIN_SET = 20
"""Images in the smallest set that has a held-out part."""
_LARGEST_SHARE = 0.1
"""Largest share to which that of a small set is raised."""


class ImagesAt(ImageSource):
    """Some images of a source, in ascending order; picklable if the source is.

    Args:
        source: The whole source.
        indices: Indices of the images in it.
        note: Text appended to the fingerprint of the whole source.
    """

    def __init__(self, source: ImageSource, indices: Int64[np.ndarray, " n"], *, note: str) -> None:
        self._source = source
        self._indices = indices
        self._note = note

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Apply ``to_image`` to image ``index``; see ``ImageSource.read``."""
        return self._source.read(int(self._indices[index]), to_image)

    def name(self, index: int) -> str:
        """Return the name of image ``index`` in the whole source."""
        return self._source.name(int(self._indices[index]))

    def fingerprint(self) -> str:
        """Return the fingerprint of the whole source, with the note."""
        return f"{self._source.fingerprint()}, {self._note}"


def split_held_out(
    source: ImageSource | ImageStream, *, share: float
) -> tuple[ImageSource | ImageStream, ImageSource | None]:
    """Split a source into the images to train on and the held-out ones.

    Args:
        source: All images.
        share: Share of the images to hold out; 0 for none.

    Returns:
        The training images and the held-out images: the whole source and None if the share is 0,
        the source is a stream, or it has fewer than ``MIN_SET`` images.
    """
    if not share:
        return source, None
    if not isinstance(source, ImageSource):
        log.info("no held-out images: a stream cannot be split by name (--data.held-out)")
        return source, None
    if len(source) < MIN_SET:
        log.info("no held-out images: %d images are fewer than %d", len(source), MIN_SET)
        return source, None
    hashes = hash_images(source)
    is_held_out = hashes <= threshold(hashes, share=share)
    held_out, kept = np.flatnonzero(is_held_out), np.flatnonzero(~is_held_out)
    note = f"{share:g} held out ({len(held_out)} images)"
    log.info("%d of %d images are held out, to score the student", len(held_out), len(source))
    return (
        ImagesAt(source, kept, note=note),
        ImagesAt(source, held_out, note=f"the part of {note}"),
    )


def threshold(hashes: Float[np.ndarray, " n"], *, share: float) -> float:
    """Return the largest hash of a held-out image (rules: top of this file).

    Args:
        hashes: Hashes of all names, at least two.
        share: Requested share.
    """
    ordered = np.sort(hashes)
    wanted = max(share, min(_LARGEST_SHARE, MIN_EXPECTED / len(ordered)))
    largest = ordered[min(MAX_IMAGES, len(ordered)) - 1]
    return float(min(max(wanted, ordered[1]), largest))


def hash_images(source: ImageSource) -> Float[np.ndarray, " n"]:
    """Return a hash of every image: of its name, and of a number where a name is repeated.

    Names are relative to their source, so several folders may have the same ones.
    """
    names = map(source.name, range(len(source)))
    hashes = np.fromiter(map(hash_name, names), np.float64, len(source))
    order = np.argsort(hashes, kind="stable")
    places = np.arange(len(order))
    is_first = np.diff(hashes[order], prepend=-1) > 0
    repetition = places - np.maximum.accumulate(np.where(is_first, places, 0))
    for place in np.flatnonzero(repetition):
        index = int(order[place])
        hashes[index] = hash_name(f"{source.name(index)}\0{repetition[place]}")
    return hashes


def hash_name(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48
