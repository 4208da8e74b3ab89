"""Survey of a labelled data set: what its splits contain, and what is likely a mistake."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pcd_hub.data.decoding import BrokenImageError, decode
from pcd_hub.data.survey.duplicates import (
    Thumbnail,
    group_equal,
    group_equal_files,
    group_near,
    groups_across,
    make_thumbnail,
)

_EXAMPLES = 3
START_SECONDS = 10.0
"""Longest search for copies at the start of a run."""


@dataclass(frozen=True, kw_only=True)
class SplitSurvey:
    """What one split contains."""

    name: str
    num_images: int
    counts: Mapping[str, int] | None
    """Objects by class; for masks, images in which the class occurs. None if they were not read."""
    num_empty: int
    """Images without objects or labelled pixels."""
    num_difficult: int = 0
    num_crowds: int = 0
    num_repeated: int = 0
    """Objects that equal another one of their image."""
    num_clipped: int = 0
    """Boxes that exceed the image by less than a pixel, and are clipped."""
    dropped: tuple[str, ...] = ()
    """Invalid annotations, such as boxes outside the image or without area."""
    unlabelled: tuple[str, ...] = ()
    """Images without a label file."""
    unmatched: tuple[str, ...] = ()
    """Label files without an image."""
    broken: tuple[str, ...] = ()
    """Images or masks that cannot be read or do not fit; only if all were read."""
    pixels: Mapping[str, int] | None = None
    """For masks: pixels by class, of all that fit; None if they were not read."""
    num_ignored_pixels: int = 0
    """For masks: pixels without a label."""
    misfits: tuple[str, ...] = ()
    """Masks of another size than their image."""
    other_values: tuple[str, ...] = ()
    """Masks with a value that is no class."""

    def warnings(self, known: Sequence[str]) -> Iterator[str]:
        """Yield one line for each likely mistake; ``known`` are all classes."""
        counts = self.counts
        missing = [] if counts is None else [name for name in known if not counts.get(name)]
        found = (
            (missing, "classes that do not occur"),
            (self.unlabelled, "images without label file"),
            (self.unmatched, "label files without image"),
            (self.dropped, "invalid annotations"),
            (self.misfits, "masks of another size than their image"),
            (self.other_values, "masks with a value that is no class"),
            (self.broken, "images that cannot be read or do not fit"),
        )
        for values, what in found:
            if values:
                yield f"{self.name}: {what}: {len(values)}, the first is {values[0]}"
        if self.num_repeated:
            yield f"{self.name}: objects annotated twice: {self.num_repeated}"

    def class_cell(self, name: str) -> str:
        """Return what the table shows for a class."""
        count = (self.counts or {}).get(name, 0)
        if self.pixels is None:
            return f"{count:,}"
        labelled = max(1, sum(self.pixels.values()))
        return f"{count:,} {100 * self.pixels.get(name, 0) / labelled:6.2f} %"

    def ignored_cell(self) -> str:
        """Return the share of the pixels without a label."""
        total = self.num_ignored_pixels + sum((self.pixels or {}).values())
        return f"{100 * self.num_ignored_pixels / max(1, total):.2f} %"


@dataclass(frozen=True, kw_only=True)
class LabelSurvey:
    """What the splits of a data set contain."""

    label_format: str
    classes: tuple[str, ...]
    splits: tuple[SplitSurvey, ...]
    num_shared: int
    """Images of the last split that are also in the first, byte for byte."""
    num_similar: int | None
    """Further ones that are near copies; None if the images were not decoded."""
    examples: tuple[tuple[str, str], ...]
    """A few pairs of images in both splits."""
    num_compared: int
    """Images that were compared for equal files."""

    def as_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self) | {"warnings": list(self.warnings())}

    def warnings(self) -> list[str]:
        """Return one line for each likely mistake."""
        lines = [line for split in self.splits for line in split.warnings(self.classes)]
        if shared := self.num_shared + (self.num_similar or 0):
            first, last = self.splits[0].name, self.splits[-1].name
            pair = " = ".join(self.examples[0])
            near = f", {self.num_similar} of them near copies" if self.num_similar else ""
            lines.append(
                f"images in {first} and in {last}: {shared}{near} ({pair}); scores on them are too "
                "high, remove them from one"
            )
        return lines

    def table(self) -> str:
        """Return a table of counts by class and split, and the warnings."""
        are_masks = self.splits[0].pixels is not None
        rows: list[tuple[str, ...]] = [("", *(split.name for split in self.splits))]
        for title, name in _ROWS:
            values = [getattr(split, name) for split in self.splits]
            numbers = [value if isinstance(value, int) else len(value) for value in values]
            if name in {"num_images", "num_empty"} or any(numbers):
                shown = "images without labels" if are_masks and name == "num_empty" else title
                rows.append((shown, *(f"{number:,}" for number in numbers)))
        if are_masks:
            rows.append(("pixels without label", *(each.ignored_cell() for each in self.splits)))
        rows += [
            (f"  {name}", *(split.class_cell(name) for split in self.splits))
            for name in self.classes
        ]
        similar = "" if self.num_similar is None else f", {self.num_similar:,} near copies"
        overlap = f"in both splits: {self.num_shared:,} equal images{similar}"
        found = [f"warning: {line}" for line in self.warnings()]
        cells = ": images, and share of the labelled pixels" if are_masks else ""
        title = f"labels: {self.label_format}, {len(self.classes)} classes{cells}"
        return "\n".join([title, *_aligned(rows), overlap, *(found or ["no warnings"])])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]


_ROWS = (
    ("images", "num_images"),
    ("images without objects", "num_empty"),
    ("images without label file", "unlabelled"),
    ("label files without image", "unmatched"),
    ("invalid annotations", "dropped"),
    ("boxes clipped at the border", "num_clipped"),
    ("objects annotated twice", "num_repeated"),
    ("difficult objects", "num_difficult"),
    ("crowds", "num_crowds"),
    ("unreadable images", "broken"),
    ("masks of another size", "misfits"),
    ("masks with other values", "other_values"),
)


class Overlap:
    """Images that two splits share.

    Args:
        first: Names of the images of the first split, their paths if they are files.
        last: Those of the last split.
    """

    def __init__(self, first: Sequence[str], last: Sequence[str]) -> None:
        self._names = [*first, *last]
        self._border = len(first)
        self.num_shared = 0
        self.num_similar: int | None = None
        self.num_compared = 0
        self.examples: list[tuple[str, str]] = []

    def compare_files(self, *, seconds: float | None) -> None:
        """Find equal files, in limited time if ``seconds`` are given."""
        end = time.monotonic() + (10**9 if seconds is None else seconds)
        paths = enumerate(map(Path, self._names))
        groups, self.num_compared = group_equal_files(paths, deadline=end)
        self.num_shared = self._count(groups)

    def compare_pixels(self, thumbnails: Mapping[int, Thumbnail]) -> None:
        """Find equal images among the decoded ones, if they are not files."""
        groups = group_equal(thumbnails, [lambda number: thumbnails[number].digest])
        self.num_compared = len(thumbnails)
        self.num_shared = self._count(groups)

    def compare_content(self, thumbnails: Mapping[int, Thumbnail]) -> None:
        """Find near copies among the decoded images, beyond the equal files."""
        numbers = list(thumbnails)
        groups = group_near(list(thumbnails.values()))
        both = self._count([[numbers[place] for place in group] for group in groups])
        self.num_similar = max(0, both - self.num_shared)

    def survey(
        self, label_format: str, classes: Sequence[str], splits: Sequence[SplitSurvey]
    ) -> LabelSurvey:
        """Return the survey of both splits, with the images that they share."""
        return LabelSurvey(
            label_format=label_format,
            classes=tuple(classes),
            splits=tuple(splits),
            num_shared=self.num_shared,
            num_similar=self.num_similar,
            examples=tuple(self.examples),
            num_compared=self.num_compared,
        )

    def _count(self, groups: list[list[int]]) -> int:
        shared = groups_across(groups, self._border)
        more = shared[: _EXAMPLES - len(self.examples)]
        self.examples += [(self._names[first[0]], self._names[last[0]]) for first, last in more]
        return sum(len(last) for _, last in shared)


def read_all(paths: Sequence[Path]) -> tuple[dict[int, Thumbnail], dict[int, str]]:
    """Decode all images; return their thumbnails, and why some cannot be decoded."""
    thumbnails: dict[int, Thumbnail] = {}
    broken: dict[int, str] = {}
    for number, path in enumerate(paths):
        try:
            thumbnails[number] = decode(path, str(path), make_thumbnail)
        except BrokenImageError as error:
            broken[number] = str(error)
    return thumbnails, broken


def with_broken(
    splits: Sequence[SplitSurvey], broken: Mapping[int, str], *, border: int
) -> list[SplitSurvey]:
    """Add the broken images to the first split, if their number is below ``border``, or the last.

    Args:
        splits: The first and the last split.
        broken: Reason by the image's number, counted over both.
        border: Number of images of the first split.
    """
    parts = (
        [reason for number, reason in sorted(broken.items()) if (number < border) == is_first]
        for is_first in (True, False)
    )
    return [replace(split, broken=tuple(part)) for split, part in zip(splits, parts, strict=True)]
