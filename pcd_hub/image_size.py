"""Image sizes: height and width in pixels, or one number for square images."""

from collections.abc import Sequence

ImageSize = int | tuple[int, int]
"""Height and width in pixels; one number for a square."""


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def simplest(size: int | Sequence[int]) -> ImageSize:
    """Return one number for a square, otherwise height and width."""
    height, width = height_width(size)
    return height if height == width else (height, width)


def format_size(size: object) -> str:
    """Format a size for messages: ``224`` or ``192 x 320``; anything else as ``str`` does."""
    return " x ".join(map(str, size)) if isinstance(size, list | tuple) else str(size)
