"""Reject TIFF files whose bands are not gray, RGB or CMYK with at most one declared alpha channel.

Pillow reads an undeclared fourth band as alpha, or drops it: measured bands (near infrared, a
second stain) would become transparency. A measured band that the file declares as alpha cannot be
detected; GDAL declares the fourth band of 8-bit files as alpha by default (``-colorinterp_4
undefined`` avoids it).
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, TiffImagePlugin

_BITS, _PHOTOMETRIC, _SAMPLES, _INK_SET, _EXTRA, _FORMAT = 258, 262, 277, 332, 338, 339
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Bands of each photometric interpretation (TIFF 6.0): gray, RGB, palette, CMYK, YCbCr, Lab."""
_ALPHA = frozenset({1, 2, 999})
"""ExtraSamples: premultiplied alpha, straight alpha, and CorelDRAW's value."""
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex"}


def check_bands(image: Image.Image) -> None:
    """Check that no band of an opened image would be dropped, misread or used as alpha.

    Raises:
        ValueError: If there is such a band; the message names the bands and the remedy.
    """
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return
    samples, colours = _samples(tags), _COLOURS.get(tags.get(_PHOTOMETRIC))
    extra = tuple(tags.get(_EXTRA, ()))
    if colours and samples > colours and (samples > colours + 1 or not _ALPHA & set(extra)):
        raise ValueError(
            f"a TIFF of {_describe_bands(tags)}: expected {colours} for colour and at most one "
            f"declared as alpha (ExtraSamples {extra or 'missing'}); {_remedy(tags)}"
        )
    if tags.get(_PHOTOMETRIC) == 5 and tags.get(_INK_SET, 1) != 1:
        raise ValueError(f"a TIFF of {samples} inks: expected CMYK; {_remedy(tags)}")
    if _first(tags, _FORMAT) == 2 and _first(tags, _BITS) == 8:
        raise ValueError(
            f"a TIFF of {_describe_bands(tags)}: expected unsigned values; {_remedy(tags)}"
        )


def describe_unreadable_tiff(file: Path | BytesIO) -> str | None:
    """Describe a TIFF that Pillow does not identify; None for other files."""
    try:
        with file.open("rb") if isinstance(file, Path) else BytesIO(file.getvalue()) as opened:
            tags = TiffImagePlugin.ImageFileDirectory_v2(opened.read(8))
            opened.seek(tags.next)
            tags.load(opened)
            description = f"a TIFF of {_describe_bands(tags)} cannot be read; {_remedy(tags)}"
    except Exception:  # truncated or hostile: Pillow's own error is reported
        return None
    return description if _PHOTOMETRIC in tags else None


def _describe_bands(tags: Mapping[int, Any]) -> str:
    samples, bits = _samples(tags), _first(tags, _BITS) or 1
    kind = _KINDS.get(_first(tags, _FORMAT) or 1, "untyped")
    return f"{samples} band{'s' if samples > 1 else ''} ({bits}-bit {kind})"


def _remedy(tags: Mapping[int, Any]) -> str:
    if _samples(tags) == 1:
        return "convert it to 32-bit float: gdal_translate -ot Float32 IN OUT"
    if _samples(tags) == 2:
        return "extract one band: gdal_translate -b 1 IN OUT"
    scale = "" if _first(tags, _BITS) == 8 else "-ot Byte -scale "
    return (
        "convert three bands to 8-bit RGB: "
        f"gdal_translate {scale}-b 1 -b 2 -b 3 -colorinterp red,green,blue IN OUT; or train on all "
        "bands: --data.bands NAME NAME ... in their order"
    )


def _samples(tags: Mapping[int, Any]) -> int:
    return int(tags.get(_SAMPLES, 1))


def _first(tags: Mapping[int, Any], tag: int) -> int | None:
    value = tags.get(tag)
    return value[0] if isinstance(value, tuple) and value else None
