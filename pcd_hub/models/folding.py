"""Fold the batch norms of a frozen network into the convolutions before them.

In eval mode, ``norm(conv(x))`` equals a single convolution with different weights.
"""

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # exact types: a subclass may standardise its weights,
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)  # or do more than normalise


def fold_batch_norms(network: nn.Module, images: Tensor) -> int:
    """Fold every batch norm that directly follows a convolution, in place; return their number.

    The pairs are found in one forward pass. Other uses of a convolution's output are **not**
    detected: compare the network's outputs before and after.

    Args:
        network: A network in eval mode, without gradients.
        images: Input for the forward pass.
    """
    with _followers(network) as pairs, torch.no_grad():
        network(images)
    for name, (conv, norm) in pairs.items():
        _fold(conv, norm)
        parent, _, child = name.rpartition(".")
        after = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
        setattr(
            network.get_submodule(parent), child, nn.Sequential(*cast("list[nn.Module]", after))
        )
    return len(pairs)


@contextlib.contextmanager
def _followers(network: nn.Module) -> Iterator[dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """Yield a dict from a batch norm's name to the preceding convolution and the batch norm.

    Forward passes inside the block fill it. Modules that are called more than once are left out.
    """
    pairs: dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]] = {}
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # keeps the tensors, so that ids are unique
    called: set[nn.Module] = set()
    repeated: set[nn.Module] = set()

    def record_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del inputs
        (repeated if module in called else called).add(module)
        assert isinstance(module, nn.Conv2d)
        outputs[id(output)] = module, output

    def record_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (repeated if module in called else called).add(module)
        assert isinstance(module, nn.BatchNorm2d)
        if (found := outputs.get(id(inputs[0]))) is not None:
            pairs[names[module]] = found[0], module

    names = {module: name for name, module in network.named_modules()}
    hooks = [m.register_forward_hook(record_output) for m in names if type(m) in _CONVOLUTIONS]
    hooks += [
        m.register_forward_pre_hook(record_input)
        for m in names
        if type(m) in _NORMS and m.running_mean is not None  # pyright: ignore[reportAttributeAccessIssue]
    ]
    yield pairs
    for hook in hooks:
        hook.remove()
    for name in [name for name, pair in pairs.items() if repeated & set(pair)]:
        del pairs[name]


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Fold one pair in float64, because division by small variances loses precision."""

    def exact(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().double()

    requires_grad, dtype = conv.weight.requires_grad, conv.weight.dtype
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight.detach().double(),
        exact(conv.bias),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        exact(norm.weight),
        exact(norm.bias),
    )
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=requires_grad)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=requires_grad)
