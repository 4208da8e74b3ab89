"""How much of the image one pixel of a backbone really looks at."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def effective_receptive_field(
    pixels: Callable[[Tensor], Float[Tensor, "b c h w"]],
    images: Float[Tensor, "b 3 height width"],
) -> Float[Tensor, "height width"]:
    """How strongly the middle pixel of the map depends on each pixel of the image; sums to 1.

    Mean absolute gradient over images and colours (Luo et al., arXiv:1701.04128).

    Args:
        pixels: The backbone, in eval mode.
        images: As the backbone expects them.
    """
    given = images.detach().requires_grad_()
    maps = pixels(given)
    middle = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(middle, given)
    field = gradient.abs().mean((0, 1))
    return field / field.sum()


def side_of_half(field: Float[Tensor, "height width"]) -> float:
    """Side of the smallest square around the field's median row and column that holds half of it.

    As a share of the image's side.
    """
    row, column = (int((field.sum(axis).cumsum(0) < field.sum() / 2).sum()) for axis in (1, 0))
    longest = max(field.shape)
    for radius in range(longest):
        rows = slice(max(0, row - radius), row + radius + 1)
        columns = slice(max(0, column - radius), column + radius + 1)
        if field[rows, columns].sum() >= 0.5 * field.sum():
            return min(1.0, (2 * radius + 1) / longest)
    return 1.0
