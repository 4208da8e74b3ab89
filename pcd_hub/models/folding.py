"""Batch norms of a frozen network folded into the convolutions before them.

In eval mode ``norm(conv(x))`` is one convolution with other weights: a pass less over every map.
"""

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # exact types: a subclass may standardise its weights
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)  # and do more than normalise


def fold_batch_norms(network: nn.Module, images: Tensor) -> int:
    """Fold, in place, every batch norm that directly follows a convolution; return how many.

    Which follow which is seen in one forward pass of ``images``. That nothing else reads between
    the two is **not** seen: compare the outputs before and after.

    Args:
        network: In eval mode, without gradients.
        images: What it is called with.
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
    """Name of a batch norm -> the convolution whose output it was given, and itself.

    Filled by the forward passes inside the block. A module that was called twice is in no pair.
    """
    pairs: dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]] = {}
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the tensors, so that no id comes back
    called: set[nn.Module] = set()
    again: set[nn.Module] = set()

    def note_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del inputs
        (again if module in called else called).add(module)
        assert isinstance(module, nn.Conv2d)
        outputs[id(output)] = module, output

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (again if module in called else called).add(module)
        assert isinstance(module, nn.BatchNorm2d)
        if (found := outputs.get(id(inputs[0]))) is not None:
            pairs[names[module]] = found[0], module

    names = {module: name for name, module in network.named_modules()}
    hooks = [m.register_forward_hook(note_output) for m in names if type(m) in _CONVOLUTIONS]
    hooks += [
        m.register_forward_pre_hook(note_input)
        for m in names
        if type(m) in _NORMS and m.running_mean is not None  # pyright: ignore[reportAttributeAccessIssue]
    ]
    yield pairs
    for hook in hooks:
        hook.remove()
    for name in [name for name, pair in pairs.items() if again & set(pair)]:
        del pairs[name]


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Compute in float64: the quotients of small variances lose digits."""

    def exact(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().double()

    kept, dtype = conv.weight.requires_grad, conv.weight.dtype
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
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=kept)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=kept)
