"""Distributions of the two views: BYOL's, a light one, and crops alone; switches for each part.

=============  =======================================  ==========================  =======
part           default                                  light                       none
=============  =======================================  ==========================  =======
crop           yes                                      yes                         yes
flip           1 in 2                                   1 in 2                      no
vertical flip  no                                       no                          no
colour jitter  4 in 5: brightness and contrast 0.4,     4 in 5: 0.2, 0.2, 0.1,      no
               saturation 0.2, hue 0.1                  no hue
gray           1 in 5                                   no                          no
blur           first view always, second 1 in 10        1 in 10                     no
solarize       second view 1 in 5                       no                          no
=============  =======================================  ==========================  =======
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Augment = Literal["default", "light", "none"]


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """Distribution of one view; the defaults are those of BYOL, MoCo v3 and PCD's released code."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest crop, as a fraction of the image's area."""
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """Largest shift, as a fraction of the colour circle."""
    gray_probability: float = 0.2
    blur_probability: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the standard deviation in pixels at image size 224; scaled with the image size,
    of a non-square image with the root of its area."""
    solarize_probability: float = 0.0
    flip_probability: float = 0.5
    vertical_flip_probability: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Switches:
    """Parts of the augmentation that are on (True), off (False), or as in the set (None)."""

    flip: bool | None = None
    vertical_flip: bool | None = None
    color_jitter: bool | None = None
    gray: bool | None = None
    blur: bool | None = None
    solarize: bool | None = None


Pair = tuple[ViewPolicy, ViewPolicy]

_FIRST = ViewPolicy()
_LIGHT = ViewPolicy(
    brightness=0.2,
    contrast=0.2,
    saturation=0.1,
    hue=0.0,
    gray_probability=0.0,
    blur_probability=0.1,
)
_NONE = ViewPolicy(
    jitter_probability=0.0, gray_probability=0.0, blur_probability=0.0, flip_probability=0.0
)
_SETS: Mapping[Augment, Pair] = {
    "default": (_FIRST, replace(_FIRST, blur_probability=0.1, solarize_probability=0.2)),
    "light": (_LIGHT, _LIGHT),
    "none": (_NONE, _NONE),
}
_PROBABILITIES = {
    "flip": "flip_probability",
    "vertical_flip": "vertical_flip_probability",
    "color_jitter": "jitter_probability",
    "gray": "gray_probability",
    "blur": "blur_probability",
    "solarize": "solarize_probability",
}
"""Field of a policy that switches each part."""


def view_policies(
    augment: Augment,
    switches: Switches | None = None,
    *,
    crop_area: tuple[float, float] = _FIRST.crop_area,
    hue: float | None = None,
    gray_probability: float | None = None,
) -> Pair:
    """Return the distributions of the first and the second view.

    Args:
        augment: The set of augmentations.
        switches: Parts to switch on or off. A part that the set lacks is that of ``default``.
        crop_area: Smallest and largest crop, as a fraction of the image's area.
        hue: Largest hue shift; the set's if not given.
        gray_probability: Probability of gray; the set's if not given.
    """
    numbers = {"hue": hue, "gray_probability": gray_probability}
    changes = {name: number for name, number in numbers.items() if number is not None}
    first, second = (
        replace(_switched(policy, usual, switches or Switches()), crop_area=crop_area, **changes)
        for policy, usual in zip(_SETS[augment], _SETS["default"], strict=True)
    )
    return first, second


def _switched(policy: ViewPolicy, usual: ViewPolicy, switches: Switches) -> ViewPolicy:
    usual = replace(usual, vertical_flip_probability=0.5)
    for part, field in _PROBABILITIES.items():
        match getattr(switches, part):
            case False:
                policy = replace(policy, **{field: 0.0})
            case True if not getattr(policy, field):
                policy = replace(policy, **{field: getattr(usual, field)})
    return policy


def switches_of(pair: Pair) -> Switches:
    """Return which parts at least one of the two views has."""
    return Switches(
        **{
            part: any(getattr(policy, field) > 0 for policy in pair)
            for part, field in _PROBABILITIES.items()
        }
    )
