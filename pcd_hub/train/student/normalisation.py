"""Adapt weights to images that are normalised with another mean and standard deviation."""

import logging
from collections.abc import Sequence

import torch
from timm.layers import Conv2dSame
from torch import nn

from pcd_hub.models.entries import PcdCfg

log = logging.getLogger("pcd_hub")


@torch.no_grad()
def adapt_normalisation(
    model: nn.Module, cfg: PcdCfg, *, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Make a model trained with ``mean`` and ``std`` expect those of ``cfg``, in place.

    The change is linear, so the first convolution can absorb it: exactly, except for the padded
    border of the image. Without a bias, the constant part is left to the next norm.

    Args:
        model: A timm model with three input channels.
        cfg: Its new normalisation, and the names of its first convolutions.
        mean: Mean that the weights were trained with.
        std: Standard deviation that they were trained with.
    """
    if (tuple(mean), tuple(std)) == (tuple(cfg.mean), tuple(cfg.std)):
        return
    names = cfg.first_conv if isinstance(cfg.first_conv, tuple) else (cfg.first_conv or "",)
    convolutions = [model.get_submodule(name) for name in names]
    if not all(_takes_rgb(module) for module in convolutions):
        log.warning(
            "the start was trained on images normalised with mean %s and std %s, this run has %s "
            "and %s, and its first layer cannot be adapted",
            *(tuple(mean), tuple(std), tuple(cfg.mean), tuple(cfg.std)),
        )
        return
    scale = torch.tensor(cfg.std) / torch.tensor(std)
    shift = (torch.tensor(cfg.mean) - torch.tensor(mean)) / torch.tensor(std)
    for convolution in convolutions:
        assert isinstance(convolution, nn.Conv2d)
        if convolution.bias is not None:
            convolution.bias += (convolution.weight * shift.view(1, 3, 1, 1)).sum((1, 2, 3))
        convolution.weight *= scale.view(1, 3, 1, 1)
    log.info(
        "the start's first layer is adapted from images normalised with mean %s and std %s",
        *(tuple(mean), tuple(std)),
    )


def _takes_rgb(module: nn.Module) -> bool:
    """Return whether a layer is a plain convolution of three channels."""
    plain = type(module) in {nn.Conv2d, Conv2dSame}  # others standardise their weights
    return plain and getattr(module, "in_channels", 0) == 3 and getattr(module, "groups", 0) == 1
