"""Crop, resize and blur a batch of images, each with its own parameters, by matrix products.

Each operation is separable: a matrix for the rows and one for the columns of every image. Neither
torch nor torchvision resizes a batch with a box of its own for each image and with antialiasing.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

_CUBIC = -0.5  # Pillow's; torch's bicubic without antialiasing has -0.75


def gather_windows(
    pixels: UInt8[Tensor, " bytes"],
    starts: Int64[Tensor, " b"],
    sizes: Int64[Tensor, "b 2"],
    corners: Int64[Tensor, "b 2"],
    *,
    window: tuple[int, int],
    num_bands: int,
) -> UInt8[Tensor, "b height width bands"]:
    """Copy a window of every image; what lies beyond the image is arbitrary.

    Args:
        pixels: All images, each as (height, width, bands).
        starts: First byte of each image.
        sizes: Width and height of each image.
        corners: Left and top of each window.
        window: Height and width of the windows.
        num_bands: Bands of the images.
    """
    height, width = window
    rows = corners[:, 1, None] + torch.arange(height, device=pixels.device)
    rows = torch.minimum(rows, sizes[:, 1, None] - 1)
    first = starts[:, None] + (rows * sizes[:, :1] + corners[:, :1]) * num_bands
    length = width * num_bands
    # Row i of this view is the bytes from i on: one index copies a row of a window.
    every_row = pixels.as_strided((len(pixels) - length + 1, length), (1, 1))
    return every_row[first].view(*first.shape, width, num_bands)


def crop_weights(
    low: Float[Tensor, " b"],
    high: Float[Tensor, " b"],
    first: Int64[Tensor, " b"],
    limit: Int64[Tensor, " b"],
    flip: Bool[Tensor, " b"],
    *,
    length: int,
    window: int,
    taps: int,
) -> Float[Tensor, "b length window"]:
    """Return the weights of Pillow's antialiased bicubic resizing of one side of a box.

    Args:
        low: Left or upper edge of the box, in pixels of the image.
        high: Right or lower edge.
        first: First pixel of the window that is read.
        limit: Number of pixels of the image on this side.
        flip: Whether the result is mirrored.
        length: Number of pixels of the result.
        window: Number of pixels of the window.
        taps: Most pixels that one pixel of the result depends on; see :func:`count_taps`.
    """
    places = torch.arange(length, device=low.device)
    places = torch.where(flip[:, None], length - 1 - places, places)
    scale = ((high - low) / length)[:, None]
    centres = low[:, None] + (places + 0.5) * scale
    widening = scale.clamp_min(1)
    nearest = (centres - 2 * widening).floor().long()
    pixels = nearest[..., None] + torch.arange(taps, device=low.device)
    distances = (pixels + 0.5 - centres[..., None]) / widening[..., None]
    inside = (pixels >= 0) & (pixels < limit[:, None, None])
    weights = _cubic(distances.abs()) * inside
    weights /= weights.sum(2, keepdim=True)
    columns = (pixels - first[:, None, None]).clamp(0, window - 1)  # weights beyond it are 0
    dense = weights.new_zeros(len(low), length, window)
    return dense.scatter_add_(2, columns, weights)  # each weight has a place of its own


def count_taps(low: float, high: float, length: int) -> int:
    """Return the number of pixels that one pixel of a resized box depends on, at most."""
    return math.ceil(4 * max(1.0, (high - low) / length)) + 1


def _cubic(x: Float[Tensor, "b length taps"]) -> Float[Tensor, "b length taps"]:
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _CUBIC
    return torch.where(x < 1, near, far * (x < 2))


def blur_weights(
    sigmas: Float[Tensor, " b"], *, length: int, max_sigma: float
) -> Float[Tensor, "b length length"]:
    """Return the weights of OpenCV's Gaussian blur of one side, with replicated borders.

    Args:
        sigmas: Standard deviations in pixels.
        length: Number of pixels.
        max_sigma: Largest of ``sigmas``.
    """
    widest = blur_radius(max_sigma)
    offsets = torch.arange(-widest, widest + 1, device=sigmas.device)
    radii = (torch.round(6 * sigmas + 1) / 2).floor()  # as blur_radius
    kernels = torch.exp((offsets / sigmas[:, None]).square() / -2)
    kernels = kernels * (offsets.abs() <= radii[:, None])
    kernels = kernels / kernels.sum(1, keepdim=True)
    columns = torch.arange(length, device=sigmas.device)[:, None] + offsets + widest
    dense = kernels.new_zeros(len(sigmas), length, length + 2 * widest)
    dense.scatter_(2, columns.expand(len(sigmas), -1, -1), kernels[:, None].expand(-1, length, -1))
    inside = dense[..., widest : widest + length]
    inside[..., 0] += dense[..., :widest].sum(2)
    inside[..., -1] += dense[..., widest + length :].sum(2)
    return inside


def blur_radius(sigma: float) -> int:
    """Return the reach of OpenCV's Gaussian kernel for 8 bits: three standard deviations."""
    return (round(6 * sigma + 1) | 1) // 2


def apply_weights(
    images: Float[Tensor, "b bands rows columns"],
    vertical: Float[Tensor, "b height rows"],
    horizontal: Float[Tensor, "b width columns"],
    *,
    in_8_bits: bool = False,
) -> Float[Tensor, "b bands height width"]:
    """Multiply every image by its own matrices.

    Args:
        images: The images, with values from 0 to 255.
        vertical: Weights of the rows.
        horizontal: Weights of the columns, which are applied first.
        in_8_bits: Round and clip between the two, as Pillow does.
    """
    count, bands, rows, columns = images.shape
    narrow = torch.bmm(images.reshape(count, bands * rows, columns), horizontal.mT)
    if in_8_bits:
        narrow.round_().clamp_(0, 255)
    return vertical[:, None] @ narrow.view(count, bands, rows, -1)


def window_of(low: float, high: float, limit: int, length: int) -> tuple[int, int]:
    """Return the first and the last + 1 of the pixels that :func:`crop_weights` may need."""
    reach = 2 * max(1.0, (high - low) / length)
    return max(0, math.floor(low - reach)), min(limit, math.ceil(high + reach))
