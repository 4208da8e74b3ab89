"""Colour jitter, gray and solarize of a batch of views, each view with its own parameters.

Values are 0 to 255 in floating point, rounded to integers after every step as in Pillow and OpenCV.
torchvision has these operations for one factor per batch.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Views = Float[Tensor, "b bands height width"]

_RGB = (0, 1, 2)
_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow and OpenCV


def mix(
    views: Views,
    weights: Float[Tensor, "b 3"],
    colours: tuple[int, ...],
) -> Views:
    """Change brightness, contrast or saturation of every view, or none of them.

    A colour becomes ``own * colour + gray * luma + mean * m``, where m is the mean luma of the
    view; another band becomes ``(own + gray) * value + mean * m``, where m is its own mean.

    Args:
        views: The views.
        weights: The weights (own, gray, mean) of every view.
        colours: Places of red, green and blue among the bands; empty if there are none.
    """
    own, gray, mean = (weight.view(-1, 1, 1, 1) for weight in weights.unbind(1))
    if views.shape[1] == len(colours):
        luma = _luma(views, colours)
        centre = luma.mean((2, 3), keepdim=True).round()
        return round_to_8_bits(torch.addcmul(torch.addcmul(mean * centre, gray, luma), own, views))
    centre = views.mean((2, 3), keepdim=True).round()
    mixed = round_to_8_bits(torch.addcmul(mean * centre, own + gray, views))
    if colours:
        return _replaced(mixed, colours, mix(_select(views, colours), weights, _RGB))
    return mixed


def _luma(views: Views, colours: tuple[int, ...]) -> Float[Tensor, "b 1 height width"]:
    red, green, blue = (views[:, place, None] for place in colours)
    return (_GRAY[0] * red).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])


def make_gray(views: Views, rows: Int64[Tensor, " k"], colours: tuple[int, ...]) -> None:
    """Replace the colours of some views by their luma, in place."""
    if colours:
        chosen = views[rows]
        luma = round_to_8_bits(_luma(chosen, colours))
        views[rows] = _replaced(chosen, colours, luma.expand(-1, len(colours), -1, -1))


def rotate_hue(
    views: Views, rows: Int64[Tensor, " k"], shifts: Float[Tensor, " k"], colours: tuple[int, ...]
) -> None:
    """Rotate the hue of some views in place.

    Args:
        views: All views.
        rows: The views that change.
        shifts: Their rotation, as a share of the colour circle.
        colours: Places of red, green and blue among the bands.
    """
    if colours:
        chosen = views[rows]
        views[rows] = _replaced(chosen, colours, _rotated(_select(chosen, colours), shifts))


def _select(views: Views, colours: tuple[int, ...]) -> Float[Tensor, "b 3 height width"]:
    """Return the colours; an index list would be copied to the device, which waits for it."""
    if colours == _RGB and views.shape[1] == 3:
        return views
    return torch.stack([views[:, place] for place in colours], dim=1)


def _replaced(
    views: Views, colours: tuple[int, ...], changed: Float[Tensor, "b 3 height width"]
) -> Views:
    """Return the views with other colours; ``views`` itself may change."""
    if colours == _RGB and views.shape[1] == 3:
        return changed
    for place, colour in zip(colours, changed.unbind(1), strict=True):
        views[:, place] = colour
    return views


def _rotated(
    views: Float[Tensor, "k 3 height width"], shifts: Float[Tensor, " k"]
) -> Float[Tensor, "k 3 height width"]:
    """Rotate the hue in the HSV hexagon, without a conversion there and back."""
    red, green, blue = views.split(1, dim=1)
    largest, smallest = views.amax(1, keepdim=True), views.amin(1, keepdim=True)
    chroma = largest - smallest
    third = torch.where(largest == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sextant = torch.where(largest == red, green - blue, third) / chroma.clamp_min(1)
    channels = torch.arange(5, 0, -2, device=views.device).view(1, 3, 1, 1)
    place = (sextant + 6 * shifts.view(-1, 1, 1, 1) + channels) % 6
    share = torch.minimum(place, 4 - place).clamp_(0, 1)
    return round_to_8_bits(largest - chroma * share)


def solarize(views: Views, chosen: Bool[Tensor, " b"]) -> Views:
    """Invert the bright pixels of the chosen views."""
    return torch.where(chosen.view(-1, 1, 1, 1) & (views >= 128), 255 - views, views)


def round_to_8_bits(views: Views) -> Views:
    """Round to integers from 0 to 255; the values stay floating point numbers."""
    return views.round_().clamp_(0, 255)
