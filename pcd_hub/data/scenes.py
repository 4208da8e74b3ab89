"""Synthetic labelled scenes, the default data set without a download: textured objects on a ground.

The class of an object is the pattern of its texture, never its colour, shape or size, so a backbone
must recognise the pattern. Patterns are tilted slightly but keep their orientation. Most objects of
a scene share one material (a class with its own proportions), as in real images (a herd, a street);
otherwise two crops of a scene would have only colour in common. A scene is a pure function of
(seed, index): nothing is stored, and the number of scenes is not limited.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[np.floating]

CLASSES = (
    "ground",
    "stripes",
    "planks",
    "checks",
    "dots",
    "rings",
    "zigzag",
    "bricks",
    "lattice",
    "grain",
)

_THEME_SHARE = 0.8
"""Probability that an object has the material of its scene instead of a random one."""
_PERIOD = (7.0, 13.0)
"""Smallest and largest distance in pixels between two lines of a pattern."""
_MAX_TILT = 0.25
"""Largest rotation of a pattern in radians."""
_SHADOW = np.float32(0.6)
"""Brightness factor in a shadow."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A generated image with its labels."""

    image: NDArray[np.uint8]
    """``(size, size, 3)`` RGB."""
    mask: NDArray[np.uint8]
    """``(size, size)``, index into ``CLASSES`` of every pixel."""
    boxes: NDArray[np.float32]
    """``(n, 4)`` x0, y0, x1, y1 in pixels of the visible part of each object."""
    labels: NDArray[np.int64]
    """``(n,)`` class index of each object."""


@dataclass(frozen=True, kw_only=True)
class _Material:
    label: int
    period: float
    """Period of the pattern in pixels."""
    share: float
    """Share of the light colour, from thin lines (0) to thick lines (1)."""
    aspect: float
    """Width of the pattern's cell relative to its height."""


def render_scene(seed: int, index: int, *, size: int = 96) -> Scene:
    """Render scene ``index`` of the series ``seed`` at ``size`` x ``size`` pixels."""
    rng = np.random.default_rng((seed, index))
    image = _background(rng, size)
    owner = np.zeros((size, size), np.int64)
    theme = _draw_material(rng)
    labels = [0]
    for number in range(1, int(rng.integers(3, 7))):
        window, inside = _draw_outline(rng, size)
        material = theme if rng.random() < _THEME_SHARE else _draw_material(rng)
        labels.append(material.label)
        _cast_shadow(rng, image, window, inside)
        pattern = _render_pattern(rng, material, inside.shape)
        np.copyto(image[window], pattern, where=inside[..., None])
        np.copyto(owner[window], number, where=inside)
    mask = np.asarray(labels, np.uint8)[owner]
    boxes, visible = _visible_boxes(owner, len(labels))
    return Scene(
        image=_apply_light_and_noise(rng, image),
        mask=mask,
        boxes=boxes,
        labels=np.asarray([labels[number] for number in visible], np.int64),
    )


def _draw_material(rng: np.random.Generator) -> _Material:
    return _Material(
        label=int(rng.integers(1, len(CLASSES))),
        period=float(rng.uniform(*_PERIOD)),
        share=float(rng.random()),
        aspect=float(rng.uniform(0.8, 1.25)),
    )


def _visible_boxes(owner: NDArray[np.int64], count: int) -> tuple[NDArray[np.float32], list[int]]:
    boxes, visible = [], []
    for number in range(1, count):
        inside = owner == number
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if rows.size:
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            visible.append(number)
    return np.asarray(boxes, np.float32).reshape(-1, 4), visible


def _draw_outline(
    rng: np.random.Generator, size: int
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Draw a random polygon or ellipse: its window in the image, and the mask inside the window."""
    radius = size * rng.uniform(0.2, 0.45)
    centre = rng.uniform(0.1, 0.9, 2) * size
    flat = rng.uniform(0.7, 1.0)
    corners = int(rng.integers(3, 10))
    if corners < 9:
        spread = rng.uniform(0.75, 1.2, corners)
    else:
        corners, spread = 40, 1.0  # an ellipse
    spokes = np.arange(corners) * (2 * np.pi / corners) + rng.uniform(0, 2 * np.pi)
    x = centre[0] + radius * spread * np.cos(spokes)
    y = centre[1] + radius * spread * np.sin(spokes) * flat
    left, top = max(0, int(x.min())), max(0, int(y.min()))
    right, bottom = min(size, int(x.max()) + 1), min(size, int(y.max()) + 1)
    canvas = Image.new("1", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(canvas).polygon(list(zip(x - left, y - top, strict=True)), fill=1)
    return (slice(top, top + canvas.height), slice(left, left + canvas.width)), np.asarray(canvas)


def _cast_shadow(
    rng: np.random.Generator,
    image: Plane,
    window: tuple[slice, slice],
    inside: NDArray[np.bool_],
) -> None:
    """Darken the image in the object's shape, shifted a few pixels to the right and down."""
    shift = int(rng.integers(1, 5))
    rows, columns = (slice(side.start + shift, side.stop + shift) for side in window)
    below = image[rows, columns]
    shadow = inside[: below.shape[0], : below.shape[1], None]
    below *= np.where(shadow, _SHADOW, np.float32(1))


def _render_pattern(rng: np.random.Generator, material: _Material, shape: tuple[int, ...]) -> Plane:
    """Render the pattern of ``material`` in two random colours, ``(*shape, 3)``."""
    u, v = _pattern_coordinates(rng, material, shape)
    pattern = _PATTERNS[CLASSES[material.label]](rng, u, v, material.share)[..., None]
    dark, light = _draw_two_colours(rng)
    return dark + (light - dark) * np.clip(pattern, 0, 1)


def _pattern_coordinates(
    rng: np.random.Generator, material: _Material, shape: tuple[int, ...]
) -> tuple[Plane, Plane]:
    """Return the pattern's axes in units of its period, at a random scale, tilt and offset."""
    angle = rng.uniform(-_MAX_TILT, _MAX_TILT)
    period = material.period * rng.uniform(0.85, 1.2)
    y, x = np.ogrid[: shape[0], : shape[1]]
    u = (np.cos(angle) * x + np.sin(angle) * y) / (period * material.aspect) + rng.uniform(0, 9)
    v = (np.cos(angle) * y - np.sin(angle) * x) / period + rng.uniform(0, 9)
    return u.astype(np.float32), v.astype(np.float32)


def _draw_two_colours(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Draw two RGB colours, in random order, at least 60 levels apart in mean brightness."""
    first = rng.uniform(0, 255, 3)
    second = rng.uniform(0, 255, 3)
    gap = second.mean() - first.mean()
    if abs(gap) < 60:
        shift = (60 - abs(gap)) * (1 if gap >= 0 else -1)
        first, second = first - shift / 2, second + shift / 2
    return first.clip(0, 255).astype(np.float32), second.clip(0, 255).astype(np.float32)


def _background(rng: np.random.Generator, size: int) -> Plane:
    """Render a smooth cloud in two colours."""
    cloud = np.zeros((size, size), np.float32)
    for cells, weight in ((3, 0.6), (7, 0.4)):
        coarse = Image.fromarray(rng.random((cells, cells), np.float32))
        cloud += weight * np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    dark, light = _draw_two_colours(rng)
    return dark + (light - dark) * np.clip(cloud[..., None] * 1.6 - 0.3, 0, 1)


def _apply_light_and_noise(rng: np.random.Generator, image: Plane) -> NDArray[np.uint8]:
    """Apply a linear light gradient and uniform sensor noise."""
    size = image.shape[0]
    slope = rng.uniform(-0.35, 0.35, 2)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + slope[0] * axis[None, :, None] + slope[1] * axis[:, None, None]
    noise = (rng.random(image.shape, np.float32) - 0.5) * rng.uniform(4, 28)
    return np.clip(image * light + noise, 0, 255).astype(np.uint8)


def _lines(phase: Plane, share: float) -> Plane:
    """Return 1 on lines at integers of ``phase`` and 0 between them, with soft edges."""
    return (0.15 + 0.2 * share - np.abs(phase - np.round(phase))) * 7 + 0.5


def _stripes(rng: np.random.Generator, u: Plane, v: Plane, share: float) -> Plane:
    del rng, v
    return _lines(u, share)


def _planks(rng: np.random.Generator, u: Plane, v: Plane, share: float) -> Plane:
    del rng, u
    return _lines(v, share)


def _checks(rng: np.random.Generator, u: Plane, v: Plane, share: float) -> Plane:
    del rng
    return 0.5 + (np.sin(np.pi * u) * np.sin(np.pi * v) + 0.3 * (share - 0.5)) * 3


def _dots(rng: np.random.Generator, u: Plane, v: Plane, share: float) -> Plane:
    del rng
    return (0.22 + 0.14 * share - np.hypot(u - np.round(u), v - np.round(v))) * 8 + 0.5


def _rings(rng: np.random.Generator, u: Plane, v: Plane, share: float) -> Plane:
    rows, columns = (int(c * s) for c, s in zip(rng.uniform(0.3, 0.7, 2), u.shape, strict=True))
    return _lines(np.hypot(u - u[rows, columns], v - v[rows, columns]), share)


def _zigzag(rng: np.random.Generator, u: Plane, v: Plane, share: float) -> Plane:
    del rng
    return _lines(v + 2 * np.abs(u / 2 - np.round(u / 2)), share)


def _bricks(rng: np.random.Generator, u: Plane, v: Plane, share: float) -> Plane:
    del rng
    shifted = u / 2 + 0.5 * (np.floor(v) % 2)
    from_joint = np.minimum(np.abs(v - np.round(v)), 2 * np.abs(shifted - np.round(shifted)))
    return (from_joint - 0.1 - 0.1 * share) * 8 + 0.5


def _lattice(rng: np.random.Generator, u: Plane, v: Plane, share: float) -> Plane:
    del rng
    return np.maximum(_lines((u + v) * 0.7, share * 0.6), _lines((u - v) * 0.7, share * 0.6))


def _grain(rng: np.random.Generator, u: Plane, v: Plane, share: float) -> Plane:
    del v
    cells = [max(4, int(side / (2 + 2 * share))) for side in u.shape]
    coarse = Image.fromarray(rng.random(cells, np.float32))
    return (np.asarray(coarse.resize(u.shape[::-1], Image.Resampling.NEAREST)) - 0.5) * 3 + 0.5


_PATTERNS: dict[str, Callable[[np.random.Generator, Plane, Plane, float], Plane]] = {
    "stripes": _stripes,
    "planks": _planks,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "lattice": _lattice,
    "grain": _grain,
}
