"""Effective receptive field: which part of the image one feature-map location depends on."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def effective_receptive_field(
    extract: Callable[[Tensor], Float[Tensor, "b c h w"]],
    images: Float[Tensor, "b bands height width"],
) -> Float[Tensor, "height width"]:
    """Measure how strongly the centre of the feature map depends on each image pixel.

    Mean absolute gradient over images and bands, normalised to sum to 1 (Luo et al.,
    arXiv:1701.04128).

    Args:
        extract: The backbone in eval mode, images to feature maps.
        images: Input images, in the range that ``extract`` expects.
    """
    leaf = images.detach().requires_grad_()
    maps = extract(leaf)
    centre = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(centre, leaf)
    field = gradient.abs().mean((0, 1))
    return field / field.sum()


def side_of_half(field: Float[Tensor, "height width"]) -> float:
    """Return the side of the smallest square that holds half of the receptive field.

    The square is centred on the field's median row and column. Its side is given as a fraction of
    the image's longer side.
    """
    row, column = (int((field.sum(axis).cumsum(0) < field.sum() / 2).sum()) for axis in (1, 0))
    longest = max(field.shape)
    for radius in range(longest):
        rows = slice(max(0, row - radius), row + radius + 1)
        columns = slice(max(0, column - radius), column + radius + 1)
        if field[rows, columns].sum() >= 0.5 * field.sum():
            return min(1.0, (2 * radius + 1) / longest)
    return 1.0
