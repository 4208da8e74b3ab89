"""Generated, labelled scenes, the recipes' offline default: textured objects over textured grounds.

The class of an object is its texture, never its colour, shape, size or direction, so that a
backbone must look at the pattern itself. Most objects of one scene share a class, as in real
pictures (a herd, a street); without that, learning from two crops of a picture would have nothing
to find but colour. A scene is a pure function of (seed, index): nothing is stored, and there are as
many as you like.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[np.floating]

_THEME_SHARE = 0.75
"""Probability that an object has its scene's own class instead of any."""

CLASSES = ("ground", "stripes", "checks", "dots", "rings", "waves", "bricks", "grain")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One generated picture with its labels."""

    image: NDArray[np.uint8]
    """``(size, size, 3)`` RGB."""
    mask: NDArray[np.uint8]
    """``(size, size)``, the index into ``CLASSES`` of every pixel."""
    boxes: NDArray[np.float32]
    """``(n, 4)`` x0, y0, x1, y1 in pixels, around the visible part of each object."""
    labels: NDArray[np.int64]
    """``(n,)`` class index of each object."""


def render_scene(seed: int, index: int, *, size: int = 96) -> Scene:
    """Draw scene number ``index`` of the endless series ``seed`` as ``size`` x ``size`` pixels."""
    rng = np.random.default_rng((seed, index))
    image = _ground(rng, size)
    owner = np.zeros((size, size), np.int64)
    theme = int(rng.integers(1, len(CLASSES)))
    labels = [0]
    for number in range(1, int(rng.integers(2, 6)) + 1):
        window, inside = _silhouette(rng, size)
        labels.append(theme if rng.random() < _THEME_SHARE else int(rng.integers(1, len(CLASSES))))
        image[window][inside] = _textured(rng, labels[-1], inside.shape)[inside]
        owner[window][inside] = number
    mask = np.asarray(labels, np.uint8)[owner]
    boxes, kept = _visible_boxes(owner, len(labels))
    return Scene(
        image=_lit(rng, image),
        mask=mask,
        boxes=boxes,
        labels=np.asarray([labels[number] for number in kept], np.int64),
    )


def _visible_boxes(owner: NDArray[np.int64], count: int) -> tuple[NDArray[np.float32], list[int]]:
    boxes, kept = [], []
    for number in range(1, count):
        rows, columns = np.nonzero(owner == number)
        if rows.size:
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            kept.append(number)
    return np.asarray(boxes, np.float32).reshape(-1, 4), kept


def _silhouette(
    rng: np.random.Generator, size: int
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """A random polygon of 3 to 9 corners: its window, and which pixels of the window are inside."""
    corners = int(rng.integers(3, 10))
    spokes = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(
        0, 4 / corners, corners
    )
    radii = size * rng.uniform(0.2, 0.48) * rng.uniform(0.75, 1.15, corners)
    centre = rng.uniform(0.1, 0.9, 2) * size
    x = centre[0] + radii * np.cos(spokes)
    y = centre[1] + radii * np.sin(spokes) * rng.uniform(0.65, 1.0)
    left, top = max(0, int(x.min())), max(0, int(y.min()))
    right, bottom = min(size, int(x.max()) + 1), min(size, int(y.max()) + 1)
    canvas = Image.new("1", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(canvas).polygon(list(zip(x - left, y - top, strict=True)), fill=1)
    return (slice(top, top + canvas.height), slice(left, left + canvas.width)), np.asarray(canvas)


def _textured(rng: np.random.Generator, label: int, shape: tuple[int, ...]) -> Plane:
    """The pattern of class ``label`` between two random colours, ``(*shape, 3)``."""
    pattern = _PATTERNS[CLASSES[label]](rng, *_coordinates(rng, shape))[..., None]
    dark, light = _two_colours(rng)
    return dark + (light - dark) * np.clip(pattern, 0, 1)


def _coordinates(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Plane, Plane]:
    """Two rotated axes in units of the pattern's own period (5 to 14 pixels)."""
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(5, 14)
    y, x = np.ogrid[: shape[0], : shape[1]]
    u = (np.cos(angle) * x + np.sin(angle) * y) / period + rng.uniform(0, 9)
    v = (np.cos(angle) * y - np.sin(angle) * x) / period + rng.uniform(0, 9)
    return u.astype(np.float32), v.astype(np.float32)


def _two_colours(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Two RGB colours that differ by at least 60 levels in mean brightness, in random order."""
    first = rng.uniform(0, 255, 3)
    second = rng.uniform(0, 255, 3)
    gap = second.mean() - first.mean()
    if abs(gap) < 60:
        shift = (60 - abs(gap)) * (1 if gap >= 0 else -1)
        first, second = first - shift / 2, second + shift / 2
    return first.clip(0, 255).astype(np.float32), second.clip(0, 255).astype(np.float32)


def _ground(rng: np.random.Generator, size: int) -> Plane:
    """A soft cloud between two colours."""
    cloud = np.zeros((size, size), np.float32)
    for cells, weight in ((3, 0.6), (7, 0.4)):
        coarse = Image.fromarray(rng.random((cells, cells), np.float32))
        cloud += weight * np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    dark, light = _two_colours(rng)
    return dark + (light - dark) * np.clip(cloud[..., None] * 1.6 - 0.3, 0, 1)


def _lit(rng: np.random.Generator, image: Plane) -> NDArray[np.uint8]:
    """A slanting light, and the noise of a camera."""
    size = image.shape[0]
    slope = rng.uniform(-0.35, 0.35, 2)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + slope[0] * axis[None, :, None] + slope[1] * axis[:, None, None]
    noise = (rng.random(image.shape, np.float32) - 0.5) * rng.uniform(4, 28)
    return np.clip(image * light + noise, 0, 255).astype(np.uint8)


def _stripes(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    del v
    return 0.5 + np.sin(2 * np.pi * u) * rng.uniform(0.8, 2.0)


def _checks(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    return 0.5 + np.sin(np.pi * u) * np.sin(np.pi * v) * rng.uniform(1.5, 4.0)


def _dots(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    distance = np.hypot(u - np.round(u), v - np.round(v))
    return (rng.uniform(0.22, 0.36) - distance) * 8 + 0.5


def _rings(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    centre = rng.uniform(0.3, 0.7, 2)
    rows, columns = (int(c * s) for c, s in zip(centre, u.shape, strict=True))
    distance = np.hypot(u - u[rows, columns], v - v[rows, columns])
    return 0.5 + np.sin(2 * np.pi * distance) * rng.uniform(0.8, 2.0)


def _waves(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    zigzag = np.abs(v / 2 - np.round(v / 2)) * rng.uniform(2.0, 3.2)
    return 0.5 + np.sin(2 * np.pi * (u + zigzag)) * rng.uniform(0.8, 2.0)


def _bricks(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    joint = rng.uniform(0.1, 0.18)
    shifted = u / 2 + 0.5 * (np.floor(v) % 2)
    from_joint = np.minimum(np.abs(v - np.round(v)), 2 * np.abs(shifted - np.round(shifted)))
    return (from_joint - joint) * 8 + 0.5


def _grain(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    del v
    cells = max(4, int(u.shape[0] / rng.uniform(1.5, 3.5)))
    coarse = Image.fromarray(rng.random((cells, cells), np.float32))
    return (np.asarray(coarse.resize(u.shape[::-1], Image.Resampling.NEAREST)) - 0.5) * 3 + 0.5


_PATTERNS: dict[str, Callable[[np.random.Generator, Plane, Plane], Plane]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "waves": _waves,
    "bricks": _bricks,
    "grain": _grain,
}
