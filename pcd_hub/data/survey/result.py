"""The result of a survey of images: figures, warnings, and what cannot be trained on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pcd_hub.errors import DataError

MIN_IMAGES = 8
"""Fewest distinct images of a set that can be trained on."""
FEW_IMAGES = 50
"""A set with fewer distinct images is warned of: the smallest that was measured (RESULTS.md)."""
MIN_SIDE = 8
"""Shortest side of an image that shows something, in pixels."""
DARK = 25
"""Images without a brighter pixel, of 255, are warned of: 12 of 16 bits are at most 16."""
MAX_BROKEN_SHARE = 0.01
"""Largest share of broken images with which a run continues."""
MANY_COPIES_SHARE = 0.05
"""A set with a larger share of copies is warned of."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Number, sizes, faults and copies of a set of images."""

    num_images: int | None
    """None for a stream."""
    num_sampled: int
    """Images that were read and decoded; all figures but the exact copies are theirs."""
    short_side: int
    """Median of the shorter sides, in pixels; 0 if no image was read."""
    smallest_side: int
    """Smallest of the shorter sides."""
    largest_side: int
    """Largest of the shorter sides."""
    num_tiny: int
    """Images with a side below ``MIN_SIDE``."""
    num_broken: int
    first_broken: str
    """Name and reason of one broken image; empty if there is none."""
    num_compared: int
    """Images that were compared for exact copies: all of them, or those sampled."""
    num_exact_copies: int
    """Copies that are equal byte for byte (in archives and tables: pixel for pixel)."""
    num_near_copies: int
    """Copies that are not exact, such as the same picture encoded or scaled anew."""
    examples: tuple[tuple[str, str], ...]
    """Names of a few pairs of copies."""
    seconds: float
    """Duration of the survey."""
    brightest: int = 255
    """Largest value of all images that were read, scaled to 8 bits."""

    def as_json(self) -> dict[str, Any]:
        """Return all fields, for ``survey.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Survey":
        """Return the survey that :meth:`as_json` described.

        Raises:
            TypeError: If fields are missing or unknown.
        """
        examples = tuple((first, second) for first, second in fields["examples"])
        return cls(**{**fields, "examples": examples})

    def describe(self) -> str:
        """Describe the images in one line."""
        if not self.num_sampled:
            return "a stream, whose images were not read in advance"
        smallest, largest = self.smallest_side, self.largest_side
        total = "a stream" if self.num_images is None else f"{self.num_images:,} images"
        whole = self.num_sampled == self.num_images
        sample = "" if whole else f"sample of {self.num_sampled:,}: "
        parts = [
            total,
            f"short side {self.short_side} px ({sample}{smallest} to {largest})",
        ]
        if self.num_broken:
            parts.append(f"{self.num_broken:,} broken")
        copies = f"{self.num_exact_copies:,} exact copies, {self.num_near_copies:,} near copies"
        if self.examples:
            copies += " (example {} = {})".format(*self.examples[0])
        return ", ".join([*parts, copies])

    def cautions(self, *, view_side: int | None = None) -> tuple[str, ...]:
        """Return one line for each property of the images that makes a result worse.

        Args:
            view_side: The larger side of the views in pixels; None if it follows the images.
        """
        return tuple(
            caution
            for caution in (
                self._broken(),
                self._tiny(),
                self._upscaled(view_side),
                self._dark(),
                self._copies(),
                self._few(),
            )
            if caution
        )

    @property
    def num_distinct(self) -> int:
        """Images that were compared, without exact copies."""
        return self.num_compared - self.num_exact_copies

    def _broken(self) -> str:
        if not self.num_broken:
            return ""
        return (
            f"{self.num_broken:,} of {self.num_sampled:,} images cannot be decoded, and are "
            f"skipped: {self.first_broken}"
        )

    def _tiny(self) -> str:
        if not self.num_tiny:
            return ""
        return (
            f"{self.num_tiny:,} of {self.num_sampled:,} images have a side below {MIN_SIDE} px; "
            "remove them"
        )

    def _upscaled(self, view_side: int | None) -> str:
        if view_side is None or not 0 < self.short_side < view_side:
            return ""
        return (
            f"the images are smaller than their views: short side {self.short_side} px (median), "
            f"--data.image-size {view_side}; a smaller one is faster and loses nothing"
        )

    def _dark(self) -> str:
        if self.brightest > DARK:
            return ""
        return (
            f"the images are nearly black: their brightest pixel is {self.brightest} of 255, for "
            "example because 16-bit files hold 12-bit values; scale them to the whole range first, "
            "or read them with --data.bands and --data.band-range"
        )

    def _copies(self) -> str:
        exact = self.num_exact_copies / max(1, self.num_compared)
        near = self.num_near_copies / max(1, self.num_sampled)
        if exact + near < MANY_COPIES_SHARE:
            return ""
        return (
            f"{exact + near:.0%} of the images are copies of others, which a contrastive loss "
            "treats as negatives of each other; pass a .txt list without them as --data.source "
            "(fdupes and czkawka find copies; survey.json names some)"
        )

    def _few(self) -> str:
        distinct = self.num_distinct - self.num_near_copies
        if self.num_images is None or self.num_compared < self.num_images:
            return ""
        if distinct >= FEW_IMAGES:
            return ""
        return (
            f"{distinct:,} distinct images are few: no run with fewer than {FEW_IMAGES} has been "
            "measured; add images, or look at the scores on held-out images"
        )


def check_count(num_images: int) -> None:
    """Check the number of images, before any is read.

    Raises:
        DataError: If there are fewer than ``MIN_IMAGES``.
    """
    if num_images < MIN_IMAGES:
        images = "image" if num_images == 1 else "images"
        raise DataError(
            f"--data.source has {num_images} {images}: expected at least {MIN_IMAGES}, and "
            f"{FEW_IMAGES} or more for a useful result; add images"
        )


def check(found: Survey) -> None:
    """Check that the images can be trained on.

    Raises:
        DataError: If no image can be decoded, a run would stop because of broken images, there are
            fewer than ``MIN_IMAGES`` distinct images, or most have a side below ``MIN_SIDE``.
    """
    if found.num_broken == found.num_sampled > 0:
        raise DataError(
            f"none of {found.num_sampled:,} images can be decoded, the first is "
            f"{found.first_broken}; check the images"
        )
    if found.num_images is None:
        return
    if found.num_broken > MAX_BROKEN_SHARE * found.num_sampled:
        raise DataError(
            f"{found.num_broken:,} of {found.num_sampled:,} images cannot be read, expected at "
            f"most {MAX_BROKEN_SHARE:.0%}; repair or remove them, the first is {found.first_broken}"
        )
    if found.num_distinct < MIN_IMAGES <= found.num_compared:
        images = "image" if found.num_distinct == 1 else "images"
        raise DataError(
            f"{found.num_compared:,} files hold {found.num_distinct} distinct {images}: expected "
            f"at least {MIN_IMAGES}; add other images"
        )
    if 0 < found.short_side < MIN_SIDE:
        raise DataError(
            f"the images are {found.short_side} px small (median of the shorter side): expected "
            f"at least {MIN_SIDE} px; use larger images"
        )
