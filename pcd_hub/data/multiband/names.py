"""Names of an image's bands: which are colours, and which a teacher of RGB images sees."""

from collections.abc import Sequence

from pcd_hub.errors import ConfigError

RGB = ("red", "green", "blue")
GRAY = ("gray",)
MAX_BANDS = 64


def check_bands(bands: Sequence[str]) -> None:
    """Check the names of the bands.

    Raises:
        ConfigError: If there is none or too many, or a name is empty or given twice.
    """
    named = " ".join(bands)
    if any("," in name for name in bands):
        raise ConfigError(
            f"--data.bands {named}: expected names separated by spaces, as in --data.bands "
            f"{' '.join(named.replace(',', ' ').split())}"
        )
    if not 1 <= len(bands) <= MAX_BANDS:
        raise ConfigError(f"--data.bands has {len(bands)} names, expected 1 to {MAX_BANDS}")
    if len(set(bands)) < len(bands) or not all(name.split() == [name] for name in bands):
        raise ConfigError(
            f"--data.bands {named}: expected one name for each band, none twice, in the order of "
            "the files, such as red green blue nir"
        )


def weight_suffix(bands: Sequence[str]) -> str:
    """Return what distinguishes the name of a weight for these bands: ``_4bands``; "" for RGB."""
    plural = "s" if len(bands) > 1 else ""
    return "" if tuple(bands) == RGB else f"_{len(bands)}band{plural}"


def colour_places(bands: Sequence[str]) -> tuple[int, ...]:
    """Return the places of red, green and blue; empty if one is missing."""
    return tuple(map(bands.index, RGB)) if set(RGB) <= set(bands) else ()


def teacher_places(bands: Sequence[str], shown: Sequence[str] = ()) -> tuple[int, ...]:
    """Return the places of the three bands that a teacher gets as red, green and blue.

    Args:
        bands: Names of the image's bands.
        shown: Names of the bands to show; if empty, red, green and blue, or a single band
            three times.

    Raises:
        ConfigError: If the bands to show are not three of ``bands``, or there are none by default.
    """
    if shown:
        if len(shown) != len(RGB) or not set(shown) <= set(bands):
            raise ConfigError(
                f"--teacher.bands {' '.join(shown)}: expected three of --data.bands "
                f"{' '.join(bands)}, to be shown to the teacher as red, green and blue"
            )
        return tuple(map(bands.index, shown))
    if len(bands) == 1:
        return (0, 0, 0)
    if places := colour_places(bands):
        return places
    raise ConfigError(
        f"--data.bands {' '.join(bands)}: the teacher takes red, green and blue; name the bands "
        f"that it gets for these, as in --teacher.bands {' '.join((*bands, *bands, *bands)[:3])}"
    )
