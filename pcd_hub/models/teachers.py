"""Frozen teachers: a backbone's feature maps, passed through its trained head if it has one."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pcd_hub.errors import TeacherError
from pcd_hub.image_size import ImageSize, format_size, height_width
from pcd_hub.method.heads import commutes_with_mean, spatial_mean_error
from pcd_hub.method.resampling import Resample
from pcd_hub.models.folding import fold_batch_norms
from pcd_hub.models.grid import PixelGrid

log = logging.getLogger("pcd_hub")

MEAN_TOLERANCE = 1e-4  # enough for float32 and heads up to 8192 wide
_MIN_FOLDED_COSINE = 0.999


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """A teacher's provenance, which goes into the record of every student."""

    source: str
    architecture: str
    sha256: str
    """Hash of the names and values of all tensors, including the head.

    Position embeddings are hashed after resampling to the input size.
    """
    head: str
    """Layers of the trained head; "none" if the backbone's feature maps are the target."""
    license: str
    """The licence given by the source, or "not stated"."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: dict[str, str] = field(default_factory=dict)
    """``layout``, ``source_file`` and ``source_sha256`` of the original file."""


class Teacher(nn.Module):
    """Frozen network: images ``(B, 3, H, W)`` in [0, 1] -> feature maps ``(B, C, h, w)``.

    It is always in eval mode, and normalises the images with its own mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, grid: PixelGrid, head: nn.Sequential | None, facts: TeacherFacts) -> None:
        super().__init__()
        self.grid = grid
        self.head = head if head is not None else nn.Identity()
        self.facts = facts
        self.register_buffer("mean", torch.tensor(facts.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(facts.std).view(3, 1, 1))
        self.bands: Tensor | None
        """Places of the bands that it gets as red, green and blue; None for RGB images."""
        self.register_buffer("bands", None, persistent=False)
        self.resample: nn.Module = nn.Identity()
        self.input_size: ImageSize | None = None
        """Size in pixels to which images are resized; None for no resizing."""
        self.training_size: ImageSize | None = None
        """Size of the images it was trained on, if its source states it."""
        self.other_sizes = nn.ModuleDict()
        """The same teacher for images of other sizes, by :func:`_size_key`."""
        self.warnings: tuple[str, ...] = ()
        """What may be wrong with it or with its images, each in one line."""
        self.faults: tuple[str, ...] = ()
        """Those of the warnings that make its feature maps wrong."""
        self._compute: Callable[[Tensor], Tensor] = self._feature_map
        self._recall: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None
        """Returns the map that an equal teacher has computed for the same images."""
        self._network = self.network_map
        self.requires_grad_(False)  # noqa: FBT003
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":  # noqa: FBT001, FBT002 - torch's signature
        """Stay in eval mode, because batch statistics would change the target."""
        del mode
        return super().train(mode=False)

    def forward(self, images: Float[Tensor, "b bands height width"]) -> Float[Tensor, "b c h w"]:
        if (key := _size_key((images.shape[2], images.shape[3]))) in self.other_sizes:
            return self.other_sizes[key](images)
        with torch.inference_mode():
            features = self._compute(images)
        return features.clone()  # not an inference tensor, so the loss can save it for backward

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile :meth:`forward` with the arguments of ``torch.compile``."""
        if self._recall is None:
            self._compute = torch.compile(self._feature_map, *args, **kwargs)
        else:
            self._network = torch.compile(self.network_map, *args, **kwargs)
        for other in self.other_sizes.values():
            other.compile(*args, **kwargs)

    def _feature_map(self, images: Tensor) -> Tensor:
        if self._recall is None:
            return self.resample(self.network_map(images))
        return self.resample(self._recall(images, self._network))

    def network_map(self, images: Tensor) -> Tensor:
        """Compute the feature map of the backbone and the head, before it is resampled."""
        if self.bands is not None:
            images = images[:, self.bands]
        if self.input_size is not None:
            size = height_width(self.input_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.head(self.grid((images - self.mean) / self.std))

    def use_network_of(
        self, other: "Teacher", recall: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
    ) -> None:
        """Use backbone, head and feature maps of an equal teacher.

        Args:
            other: The other teacher; its feature maps may be resampled to another size.
            recall: Returns the :meth:`network_map` of images, computed by its second argument if it
                is not known. :meth:`set_sizes` ends its use.
        """
        self.grid, self.head, self._recall = other.grid, other.head, recall

    def set_bands(self, places: Sequence[int] | None) -> None:
        """Take images of several bands, of which those at ``places`` are red, green and blue."""
        self.bands = None if places is None else torch.tensor(places, device=self.mean.device)
        for other in self.other_sizes.values():
            other.set_bands(places)  # pyright: ignore[reportCallIssue]

    def set_sizes(
        self,
        image_size: ImageSize,
        *,
        input_size: ImageSize | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        """Resize images of ``image_size`` to ``input_size``, and feature maps to ``grid``.

        Each change is logged; None means no change.

        Raises:
            TeacherError: If the mean of the resampled feature map differs from the head's output
                for the mean.
        """
        self.resample, self.input_size, self._compute = nn.Identity(), None, self._feature_map
        self._recall, self._network = None, self.network_map
        self.other_sizes.clear()
        if input_size and height_width(input_size) != height_width(image_size):
            sizes = format_size(input_size), format_size(image_size)
            log.info("the teacher's input is %s px, the student's %s px", *sizes)
            self.input_size = input_size
        own = self.grid_size(image_size)
        if grid is not None and grid != own:
            log.info(
                "the teacher's %d x %d feature maps are resampled to the student's %d x %d",
                *(*own, *grid),
            )
            self.resample = Resample(own, grid).to(self.mean.device)
            self._check_resampled(input_size or image_size)

    def add_size(
        self,
        image_size: ImageSize,
        *,
        network: PixelGrid,
        input_size: ImageSize,
        grid: tuple[int, int],
    ) -> None:
        """Take images of another size, too, with sizes of their own (see :meth:`set_sizes`).

        Args:
            image_size: The other size.
            network: The backbone for ``input_size``; it may be or share the weights of ``grid``.
            input_size: Size to which these images are resized.
            grid: Height and width of their feature maps.

        Raises:
            TeacherError: As :meth:`set_sizes`.
        """
        head = self.head if isinstance(self.head, nn.Sequential) else None
        other = Teacher(network, head, self.facts)
        other.set_sizes(image_size, input_size=input_size, grid=grid)
        other.bands = self.bands
        self.other_sizes[_size_key(image_size)] = other

    def for_size(self, image_size: ImageSize) -> "Teacher":
        """Return the teacher for images of a size: itself, or that of :meth:`add_size`."""
        key = _size_key(image_size)
        return cast("Teacher", self.other_sizes[key]) if key in self.other_sizes else self

    def _check_resampled(self, image_size: ImageSize) -> None:
        with torch.no_grad():
            maps = self.grid(noise_images(self, image_size))
            mean = self._mean_output(maps)
        error = spatial_mean_error(
            lambda _: mean, lambda maps: self.resample(self.head(maps)), maps
        )
        if not error <= MEAN_TOLERANCE:
            raise TeacherError(
                f"{self.facts.source}: the mean of its resampled feature map differs from its head "
                f"of the mean by {error:.1e}, expected at most {MEAN_TOLERANCE:.0e}; use another "
                "--teacher.image-size"
            )

    def _mean_output(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return the mean of the head's output for backbone maps; its vector if it has one."""
        if commutes_with_mean(self.head):  # on one location, it is the head it was made from
            return self.head(maps.mean((2, 3), keepdim=True)).flatten(1)
        return self.head(maps).mean((2, 3))

    def grid_size(self, image_size: ImageSize) -> tuple[int, int]:
        """Return the height and width of the feature map for images of ``image_size``."""
        return grid_size(self, image_size)

    def fold_batch_norms(self, image_size: ImageSize) -> None:
        """Fold batch norms into convolutions: the same output up to rounding, but faster.

        Nothing is folded, and a warning is logged, if on noise images the cosine between any output
        vector and its original is below 0.999, or the mean of the feature map no longer equals the
        head's output for the mean.
        """
        images = noise_images(self, image_size)
        self._compute = self._feature_map
        folded = copy.deepcopy(self)
        with torch.no_grad():
            maps = folded.grid(images)
            features = folded.head(maps)
            count = fold_batch_norms(folded.grid, images) + fold_batch_norms(folded.head, maps)
            maps = folded.grid(images)
            cosine = F.cosine_similarity(folded.head(maps), features).min().item()
            mean = self._mean_output(maps)
            error = spatial_mean_error(lambda _: mean, folded.head, maps)
        if cosine >= _MIN_FOLDED_COSINE and error <= MEAN_TOLERANCE:
            self.grid, self.head = folded.grid, folded.head
        else:
            log.warning(
                "%d batch norms of the teacher are not folded: the cosine with the original output "
                "would be %.4f (at least %s), the error of the mean %.1e",
                *(count, cosine, _MIN_FOLDED_COSINE, error),
            )

    @property
    def num_channels(self) -> int:
        """Channels of the feature map: the head's output, or the backbone's."""
        convolutions = [layer for layer in self.head.modules() if isinstance(layer, nn.Conv2d)]
        return convolutions[-1].out_channels if convolutions else self.grid.num_channels


def _size_key(image_size: ImageSize) -> str:
    height, width = height_width(image_size)
    return f"{height}x{width}"


def grid_size(network: nn.Module, image_size: ImageSize) -> tuple[int, int]:
    """Return the height and width of the feature map for images of ``image_size``."""
    device = next(network.parameters()).device
    training = network.training
    with torch.no_grad():
        images = torch.zeros(2, _in_chans(network), *height_width(image_size), device=device)
        shape = network.eval()(images).shape
    network.train(training)
    return shape[2], shape[3]


def _in_chans(network: nn.Module) -> int:
    return getattr(network, "in_chans", 3)


def noise_images(teacher: Teacher, image_size: ImageSize) -> Float[Tensor, "2 3 height width"]:
    """Return two normalised noise images from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *height_width(image_size), generator=generator)
    return (images.to(teacher.mean.device) - teacher.mean) / teacher.std
