"""A teacher from any ``nn.Module`` whose output contains a feature map or a token sequence."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pcd_hub.errors import StudentError, TeacherError, first_line
from pcd_hub.image_size import ImageSize, height_width, simplest
from pcd_hub.models.grid import PixelGrid, fills_grid, pixel_grid
from pcd_hub.models.teacher_sources.parts import Numbers, check_normalisation
from pcd_hub.models.teachers import Teacher, TeacherFacts
from pcd_hub.models.tensor_files import tensors_sha256

SCHEME = "module"
"""Scheme in the source of such a teacher, which cannot be loaded again by its name."""

_KEYS = ("last_hidden_state", "x_norm_patchtokens", "feature_map", "features", "out")
_MAX_PREFIX_TOKENS = 16  # class token and registers


def teacher_from_module(
    module: nn.Module,
    *,
    mean: Numbers,
    std: Numbers,
    name: str | None = None,
    license: str = "not stated",  # noqa: A002
    image_size: ImageSize | None = None,
    num_prefix_tokens: int | None = None,
) -> Teacher:
    """Make a frozen teacher from a module: images ``(B, 3, H, W)`` -> features.

    The features are a map ``(B, C, h, w)`` or ``(B, h, w, C)``, or tokens ``(B, N, C)``. They may
    be inside a dict, a tuple, or an object with ``last_hidden_state``, as returned by the models of
    transformers and torch.hub. ``forward_features`` is called if the module has it. The layout is
    detected by a forward pass of black images. The module itself is frozen and converted
    to float32, not a copy.

    Args:
        module: The teacher's network, with its weights.
        mean: Mean of each channel with which it was trained, for images in [0, 1].
        std: Standard deviation of each channel.
        name: Name for the record; default: the class.
        license: Licence of its weights.
        image_size: Size of the black images in pixels; default: the only size that the module
            takes, if it states one as timm's models do, otherwise 224.
        num_prefix_tokens: Tokens before those of the image, such as class token and registers;
            default: as few as make the rest a grid.

    Raises:
        TeacherError: If the module fails, or its output contains no feature map.
    """
    name = name or type(module).__name__
    source = f"{SCHEME}:{name}"
    check_normalisation(mean, std, source)
    if not any(True for _ in module.parameters()):
        raise TeacherError(f"{source} has no parameters; expected a network with its weights")
    module.float()
    size = image_size or only_size(module) or 224
    grid = _grid(module, source, size, num_prefix_tokens)
    facts = TeacherFacts(
        source=source,
        architecture=name,
        sha256=tensors_sha256({key: value.cpu() for key, value in module.state_dict().items()}),
        head="none",
        license=license,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
    )
    return Teacher(grid, None, facts)


def only_size(module: nn.Module) -> ImageSize | None:
    """Return the only size of its images that a ViT or Swin of timm takes; None for any."""
    patches: Any = getattr(module, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    return simplest(size) if size and getattr(patches, "strict_img_size", False) else None


def _grid(
    module: nn.Module, source: str, image_size: ImageSize, num_prefix_tokens: int | None
) -> PixelGrid:
    is_from_timm = getattr(module, "pretrained_cfg", None) and hasattr(module, "forward_features")
    network: Any = module if is_from_timm else Features(module)
    try:
        if not is_from_timm:
            network.num_prefix_tokens = (
                _count_prefix_tokens(network, image_size)
                if num_prefix_tokens is None
                else num_prefix_tokens
            )
        return pixel_grid(network, image_size=image_size)
    except (StudentError, TeacherError) as error:
        raise TeacherError(f"{source}: {error}") from error


class Features(nn.Module):
    """Call a module like a timm model, and select the features in its output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.num_prefix_tokens = 0
        # It may accept no other size than that of the training.
        self.pretrained_cfg = {"architecture": type(module).__name__, "fixed_input_size": True}

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the feature map or the tokens."""
        forward: Any = getattr(self.module, "forward_features", self.module)
        return find_features(forward(images))


def _count_prefix_tokens(network: Features, image_size: ImageSize) -> int:
    """Return the smallest number of tokens without which the others fill a grid."""
    parameter = next(network.parameters())
    shape = (2, 3, *height_width(image_size))
    images = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    was_training = network.training
    try:
        with torch.no_grad():
            features = network.eval().forward_features(images)
    except TeacherError:
        raise
    except Exception as error:
        raise TeacherError(
            f"it fails on images {shape}: {first_line(error)}; expected a module that takes a "
            "batch of images (B, 3, H, W)"
        ) from error
    finally:
        network.train(was_training)
    tokens = features.shape[1] if features.ndim == 3 else 0
    counts = range(min(_MAX_PREFIX_TOKENS, tokens - 1) + 1)
    return next((count for count in counts if fills_grid(tokens - count, images)), 0)


def find_features(output: Any) -> Tensor:
    """Return the feature map or token sequence in a module's output.

    Raises:
        TeacherError: If there is none.
    """
    match output:
        case Tensor():
            candidates = [output]
        case Mapping():
            known = [output[key] for key in _KEYS if key in output]
            candidates = known or [*reversed([*output.values()])]
        case list() | tuple() if not hasattr(output, "last_hidden_state"):
            candidates = [*_of_rank(4, reversed(output)), *_of_rank(3, output)]
        case _:
            candidates = [getattr(output, "last_hidden_state", None)]
    found = next(
        (one for one in candidates if isinstance(one, Tensor) and one.ndim in {3, 4}), None
    )
    if found is None:
        raise TeacherError(
            f"its output is {_describe(output)}, expected a feature map (B, C, h, w) or tokens "
            "(B, N, C); leave out its pooling and its classifier"
        )
    return found


def _of_rank(rank: int, values: Any) -> list[Tensor]:
    return [one for one in values if isinstance(one, Tensor) and one.ndim == rank]


def _describe(output: Any) -> str:
    match output:
        case Tensor():
            return f"a tensor {tuple(output.shape)}"
        case Mapping():
            inner = ", ".join(f"{key}: {_describe(value)}" for key, value in output.items())
            return f"a dict ({inner[:200]})"
        case list() | tuple():
            return f"a {type(output).__name__} ({', '.join(map(_describe, output))[:200]})"
        case _:
            return f"a {type(output).__name__}"
