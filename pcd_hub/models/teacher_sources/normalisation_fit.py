"""Find out from batch norms whether a teacher was trained, and with which normalisation.

The first batch norm of a network remembers the mean and variance of its input in training. With the
right normalisation, other photographs give nearly the same; with a wrong one they cannot.
"""

import contextlib

import torch
from jaxtyping import Float
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor, nn

from pcd_hub.models.teacher_sources.parts import Numbers
from pcd_hub.models.teachers import Teacher

_BYTE = (1 / 255,) * 3
_USUAL: tuple[tuple[Numbers, Numbers], ...] = (
    (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
    (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    ((0.0,) * 3, (1.0,) * 3),
    ((0.0,) * 3, _BYTE),
    (IMAGENET_DEFAULT_MEAN, _BYTE),
)
"""Mean and standard deviation of most published weights; the last two see values up to 255."""
MIN_GAIN = 0.2
"""Decrease of the distance by another normalisation that is no chance. With wrong ones of three
networks on photographs it was 0.32 or more, but 0.04 at most for CLIP's instead of ImageNet's,
which are alike. With the right one, none fitted better on four sets of images, in gray or four
times darker; on random noise, one did by 0.25."""
MAX_SHARE = 0.7
"""Largest distance by the other normalisation, as a share of that by the given one. With wrong ones
of an EfficientNet-Lite0 it was 0.02 at most on photographs, 0.64 on blood cells; with the right one
on made images that no normalisation fits (low light with noise, stars), 0.76 to 0.85."""
_TIE = 0.05
"""Difference of two distances that is chance."""


def untrained_warning(teacher: Teacher) -> str:
    """Return a warning if no batch norm of a teacher has ever seen an image; "" otherwise."""
    norms = _batch_norms(teacher.grid)
    if not norms or not all(_is_new(norm) for norm in norms):
        return ""
    return (
        f"its {len(norms)} batch norms all have mean 0 and variance 1, as random weights do; check "
        "--teacher.source"
    )


def _is_new(norm: nn.BatchNorm2d) -> bool:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())


def normalisation_fit_warning(teacher: Teacher, images: Float[Tensor, "n 3 height width"]) -> str:
    """Return a warning if a usual normalisation fits the teacher clearly better than its own.

    Args:
        teacher: A teacher whose batch norms are not folded.
        images: Images like those of the run, in [0, 1].

    Returns:
        One line; "" if its own fits, or if the network has no batch norm that could show it.
    """
    used = tuple(teacher.facts.mean), tuple(teacher.facts.std)
    own = normalisation_distance(teacher.grid, images, *used)
    if own is None:
        return ""
    others = {each: normalisation_distance(teacher.grid, images, *each) or 0.0 for each in _USUAL}
    least = min(others.values())
    best = next(each for each in _USUAL if others[each] <= least + _TIE)
    if own - others[best] <= MIN_GAIN or others[best] > MAX_SHARE * own:
        return ""
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in best)
    return (
        f"mean {_join(used[0])} and std {_join(used[1])} do not fit the teacher: on these images, "
        f"the input of its first batch norm is {own:.2f} away from that in its training, "
        f"and {others[best]:.2f} with --teacher.mean {mean} --teacher.std {std}; try these"
    )


def normalisation_distance(
    network: nn.Module, images: Float[Tensor, "n 3 height width"], mean: Numbers, std: Numbers
) -> float | None:
    """Return how unlike its training the first batch norm's input is.

    Args:
        network: A network in eval mode, with normalised images as its input.
        images: Images in [0, 1].
        mean: Mean of each channel.
        std: Standard deviation of each channel.

    Returns:
        Kullback-Leibler divergence in nats of each channel's distribution, as a normal one, from
        the batch norm's running statistics; the median over the channels. None without a batch
        norm.
    """
    shift, scale = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    found = _first_batch_norm(network, (images - shift) / scale)
    if found is None:
        return None
    norm, inputs = found
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance, average = torch.var_mean(inputs.float(), (0, 2, 3))
    expected = norm.running_var + norm.eps
    ratio = variance / expected
    offset = (average - norm.running_mean).square() / expected
    return float(((ratio + offset - 1 - ratio.clamp_min(1e-12).log()) / 2).median())


class _Found(Exception):  # noqa: N818 - no error: it ends a forward pass
    pass


@torch.no_grad()
def _first_batch_norm(network: nn.Module, images: Tensor) -> tuple[nn.BatchNorm2d, Tensor] | None:
    """Return the first batch norm of a forward pass, which ends there, and its input."""
    seen: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def stop(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        seen.append((norm, inputs[0]))
        raise _Found

    hooks = [norm.register_forward_pre_hook(stop) for norm in _batch_norms(network)]
    if not hooks:
        return None
    with contextlib.suppress(_Found):
        network(images)
    for hook in hooks:
        hook.remove()
    return seen[0] if seen else None


def _batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the batch norms that have statistics."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return [norm for norm in norms if norm.running_mean is not None]


def _join(values: Numbers) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
