"""Features of a frozen backbone's last stages, computed once and cached if they fit in memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcd_hub.data.progress import Progress, silent
from pcd_hub.errors import StudentError, first_line

FeatureMaps = Callable[[Tensor], Float[Tensor, "b c h w"]]
"""uint8 images ``(b, 3, height, width)`` -> feature maps ``(b, c, h, w)``."""

_BATCH_SIZE = 64


@runtime_checkable
class Images(Protocol):
    """Images of one size: a tensor ``(n, 3, height, width)``, or files that are read on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> UInt8[Tensor, "b 3 height width"]: ...


@runtime_checkable
class ReadAhead(Protocol):
    """Images that can be prefetched, e.g. by worker processes."""

    def batches(self, rows: Sequence[list[int]], /) -> Iterator[UInt8[Tensor, "b 3 height width"]]:
        """Yield the images of each list of rows, in order."""
        ...


class StageFeatures:
    """Feature maps of a timm model's last stages, concatenated on the finest stage's grid.

    The blocks of a ViT pass through its final norm, as in DINOv2's linear segmentation; the stages
    of other models are used unchanged.

    Args:
        model: A timm model with ``forward_intermediates``; it is put in eval mode.
        num_stages: Number of stages (blocks of a ViT), counted from the end.
        mean: Mean of the pixel values in [0, 1] per channel that the model expects.
        std: Standard deviation of these pixel values.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_stages: int = 3,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self._model = model.eval()
        self._num_stages = num_stages
        self._norm = hasattr(model, "num_prefix_tokens")  # a token-based model, in timm
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        device = next(self._model.parameters()).device
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        normalised = (images.to(device, non_blocking=True) / 255 - self._mean) / self._std
        maps = self._model.forward_intermediates(  # pyright: ignore[reportCallIssue]
            normalised, indices=self._num_stages, norm=self._norm, intermediates_only=True
        )
        grid = max(m.shape[-2] for m in maps), max(m.shape[-1] for m in maps)
        return torch.cat([F.interpolate(m.float(), grid, mode="bilinear") for m in maps], 1)


class FeatureCache:
    """Feature maps of a set of images: cached if they fit, otherwise recomputed on every access.

    Args:
        features: The frozen backbone.
        images: Images of one size.
        cache_bytes: The maps are cached if all of them take at most this much memory in float32.
        progress: Progress display for passes over all images.
        name: Label of the images in progress bars.

    Raises:
        StudentError: If the backbone cannot compute its features for images of this size.
    """

    def __init__(
        self,
        features: FeatureMaps,
        images: Images,
        *,
        cache_bytes: int,
        progress: Progress = silent,
        name: str = "images",
    ) -> None:
        self._features = features
        self._images = images
        self._progress = progress
        self._name = name
        self._maps: Tensor | None = None
        first = images[[0]]
        try:
            sample = features(first)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise StudentError(
                f"this backbone cannot give these stages of {tuple(first.shape[2:])} pixels "
                f"({first_line(error)}); ask for fewer stages or another image size"
            ) from error
        self.num_channels = sample.shape[1]
        self._mean, self._scale = sample.new_zeros(()), sample.new_ones(())
        if len(images) * sample.nbytes <= cache_bytes:
            cached = torch.empty(len(images), *sample.shape[1:])
            for rows, maps in self.all_batches("features"):
                cached[rows] = torch.stack(maps).cpu()
            self._maps = cached

    def __len__(self) -> int:
        return len(self._images)

    @property
    def is_cached(self) -> bool:
        """True if the maps are cached in memory."""
        return self._maps is not None

    def batches(self, rows: Sequence[list[int]]) -> Iterator[list[Float[Tensor, "c h w"]]]:
        """Yield the standardised maps of each list of rows, in order."""
        if self._maps is not None:
            for each in rows:  # views; indexing with a list copies, which takes 4 times as long
                yield [self._maps[row] for row in each]
            return
        for images in _read(self._images, rows):
            yield list((self._features(images) - self._mean) / self._scale)

    def all_batches(self, what: str) -> Iterator[tuple[list[int], list[Float[Tensor, "c h w"]]]]:
        """Yield rows and maps of all images in batches; ``what`` labels the progress bar."""
        rows = list(range(len(self)))
        parts = [rows[at : at + _BATCH_SIZE] for at in rows[::_BATCH_SIZE]]
        batches = zip(parts, self.batches(parts), strict=True)
        return self._progress(batches, f"{what} of {self._name}", total=len(parts))

    def statistics(self) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        """Return mean and standard deviation of every channel over all images and locations."""
        count, total, squares = 0, 0.0, 0.0
        for _, batch in self.all_batches("statistics"):
            for maps in batch:
                values = maps.cpu().double()
                count += values[0].numel()
                total = total + values.sum((1, 2), keepdim=True)
                squares = squares + values.square().sum((1, 2), keepdim=True)
        mean = torch.as_tensor(total / count)
        variance = (torch.as_tensor(squares / count) - mean.square()).clamp_min(0)
        return mean.float(), variance.sqrt().float()

    def standardise(self, mean: Float[Tensor, "c 1 1"], scale: Float[Tensor, "c 1 1"]) -> None:
        """Standardise all later maps per channel, ``(maps - mean) / scale``. Call it once."""
        if self._maps is not None:
            self._maps.sub_(mean).div_(scale)
        self._mean, self._scale = (t.to(self._mean.device) for t in (mean, scale))


def _read(images: Images, rows: Sequence[list[int]]) -> Iterator[UInt8[Tensor, "b 3 height width"]]:
    if isinstance(images, ReadAhead):
        return images.batches(rows)
    return map(images.__getitem__, rows)
