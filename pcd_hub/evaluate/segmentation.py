"""The linear segmentation probe: which classes a frozen backbone already separates, pixel by pixel.

One 1x1 convolution on the normalised, concatenated maps of the last stages, upsampled bilinearly to
the labels. DINOv2 and DINOv3 probe so too, with a BatchNorm before the convolution; as the backbone
is frozen, its statistics are those of the training set, computed once like the features, and its
affine part is in the convolution.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcd_hub.data.labelled.sets import IGNORE
from pcd_hub.errors import DataError, StudentError
from pcd_hub.method.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy

FeatureMaps = Callable[[Tensor], Float[Tensor, "b c h w"]]
StepT = TypeVar("StepT")

_IMAGES_AT_ONCE = 64


@runtime_checkable
class Images(Protocol):
    """Images of one size, by rows: a tensor ``(n, 3, height, width)``, or files read when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> UInt8[Tensor, "b 3 height width"]: ...


@runtime_checkable
class ReadAhead(Protocol):
    """Images that can be read in advance, as by worker processes."""

    def batches(self, rows: Sequence[list[int]], /) -> Iterator[UInt8[Tensor, "b 3 height width"]]:
        """Yield the images of each list of rows, in order."""
        ...


@runtime_checkable
class Masks(Protocol):
    """One ``(height, width)`` map of classes an image; ``IGNORE`` where there is no label."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: Any, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images with the class of every pixel."""

    images: Images
    masks: Masks
    """All of one size where a probe is trained; of any sizes where it is scored."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Scores of one probe on the held-out images, each in [0, 1]."""

    mean_iou: float
    class_iou: tuple[float, ...]
    """NaN for a class that occurs in neither truth nor prediction."""
    pixel_accuracy: float
    predictions: tuple[UInt8[Tensor, "_ _"], ...]
    """Classes at the size of each mask."""


@runtime_checkable
class Progress(Protocol):
    """Iterates over ``steps`` unchanged, and may show how far it is."""

    def __call__(self, steps: Iterable[StepT], what: str, *, total: int) -> Iterator[StepT]: ...


def silent(steps: Iterable[StepT], what: str, *, total: int) -> Iterator[StepT]:
    """Show nothing."""
    del what, total
    return iter(steps)


class StageFeatures:
    """The maps of a timm model's last ``num_stages`` stages, side by side on the finest's grid.

    The maps of a ViT's blocks go through its final norm, as in DINOv2's linear segmentation; those
    of other models are taken as they are.

    Args:
        model: A timm model with ``forward_intermediates``; put in eval mode.
        num_stages: How many stages (blocks, in a ViT) from the end.
        mean: Of the pixel values in [0, 1] per channel that the model expects.
        std: Likewise.
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
        self._norm = hasattr(model, "num_prefix_tokens")  # timm: a model of tokens
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


class KeptMaps:
    """The features of images: computed once and kept if they fit, else anew whenever asked.

    Args:
        features: The frozen backbone.
        images: Of one size.
        keep_bytes: How much memory the float32 maps of all images may take to be kept.
        progress: Shows how far a pass over all images is.
        name: What the images are called there.
    """

    def __init__(
        self,
        features: FeatureMaps,
        images: Images,
        *,
        keep_bytes: int,
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
            one = features(first)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise StudentError(
                f"this backbone cannot give these stages of {tuple(first.shape[2:])} pixels "
                f"({(str(error).strip().splitlines() or [type(error).__name__])[0]}); ask for "
                "fewer stages or another image size"
            ) from error
        self.num_channels = one.shape[1]
        self._mean, self._scale = one.new_zeros(()), one.new_ones(())
        if len(images) * one.nbytes <= keep_bytes:
            kept = torch.empty(len(images), *one.shape[1:])
            for rows, maps in self.parts("features"):
                kept[rows] = torch.stack(maps).cpu()
            self._maps = kept

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, rows: Sequence[list[int]]) -> Iterator[list[Float[Tensor, "c h w"]]]:
        """Yield the standardised maps of each list of rows, in order."""
        if self._maps is not None:
            for each in rows:
                # Gathered into one tensor, they would be copied: 4 x the time.
                yield [self._maps[row] for row in each]
            return
        for images in _read(self._images, rows):
            yield list((self._features(images) - self._mean) / self._scale)

    def parts(self, what: str) -> Iterator[tuple[list[int], list[Float[Tensor, "c h w"]]]]:
        """All rows with their maps, a few at a time; ``what`` is done with them."""
        rows = list(range(len(self)))
        parts = [rows[at : at + _IMAGES_AT_ONCE] for at in rows[::_IMAGES_AT_ONCE]]
        together = zip(parts, self.batches(parts), strict=True)
        return self._progress(together, f"{what} of {self._name}", total=len(parts))

    @property
    def are_kept(self) -> bool:
        """Whether they fitted."""
        return self._maps is not None

    def standardise(self, mean: Tensor, scale: Tensor) -> None:
        """From now on ``(maps - mean) / scale``, by channel; called once."""
        if self._maps is not None:
            self._maps.sub_(mean).div_(scale)
        self._mean, self._scale = (t.to(self._mean.device) for t in (mean, scale))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every channel over all pixels: ``(C, 1, 1)`` each."""
        count, total, squares = 0, 0.0, 0.0
        for _, part in self.parts("statistics"):
            for maps in part:
                values = maps.cpu().double()
                count += values[0].numel()
                total = total + values.sum((1, 2), keepdim=True)
                squares = squares + values.square().sum((1, 2), keepdim=True)
        mean = torch.as_tensor(total / count)
        variance = (torch.as_tensor(squares / count) - mean.square()).clamp_min(0)
        return mean.float(), variance.sqrt().float()


def _read(images: Images, rows: Sequence[list[int]]) -> Iterator[UInt8[Tensor, "b 3 height width"]]:
    if isinstance(images, ReadAhead):
        return images.batches(rows)
    return map(images.__getitem__, rows)


class LinearProbe:
    """Features of training and test images, on which a linear probe is trained and scored.

    The backbone behind ``features`` stays as it is, so all seeds share its maps.

    Args:
        features: The frozen backbone; see :class:`StageFeatures`.
        train: Masks of one size.
        test: Masks of any sizes.
        num_classes: C; masks hold 0 to C - 1, and ``IGNORE``.
        keep_bytes: As of :class:`KeptMaps`, for training and test images each.
        progress: Shows how far each pass over the images and each training is.
    """

    def __init__(
        self,
        features: FeatureMaps,
        train: LabelledImages,
        test: LabelledImages,
        *,
        num_classes: int,
        keep_bytes: int = 4 * 1024**3,
        progress: Progress = silent,
    ) -> None:
        self._train, self._test = (
            KeptMaps(features, split.images, keep_bytes=keep_bytes, progress=progress, name=name)
            for split, name in ((train, "training images"), (test, "test images"))
        )
        self._progress = progress
        self._train_masks, self._test_masks = train.masks, test.masks
        self._num_classes = num_classes
        mean, deviation = self._train.statistics()  # BatchNorm, with the whole training set's
        for maps in (self._train, self._test):
            maps.standardise(mean, deviation + 1e-5)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(
        self,
        *,
        steps: int = 400,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-3,
        label_stride: int = 1,
        seed: int = 0,
    ) -> ProbeResult:
        """Train a probe and score it.

        AdamW along half a cosine. The steps must be enough to converge: a short probe predicts the
        commonest class for every backbone alike.

        Args:
            steps: How many.
            batch_size: Images a step.
            learning_rate: At the start.
            weight_decay: Of the convolution and its bias.
            label_stride: The loss of a step is taken at every ``label_stride``-th row and column,
                from a random one on: the same in the mean, at a fraction of the cost.
            seed: Of the batches.
        """
        generator, offsets = (torch.Generator().manual_seed(seed) for _ in range(2))
        probe = nn.Linear(self._train.num_channels, self._num_classes).to(self._device)
        for parameter in probe.parameters():
            nn.init.zeros_(parameter)  # the problem is convex: every start ends alike
        optimizer = torch.optim.AdamW(
            probe.parameters(), lr=learning_rate, weight_decay=weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        rows_of = [
            torch.randint(len(self._train), (batch_size,), generator=generator).tolist()
            for _ in range(steps)
        ]
        batches = zip(rows_of, self._train.batches(rows_of), strict=True)
        for rows, maps in self._progress(batches, "training the probe", total=steps):
            truth = torch.stack([self._train_masks[row] for row in rows])
            truth = truth.to(self._device, torch.int64)
            y, x = torch.randint(label_stride, (2,), generator=offsets).tolist()
            logits = self._logits(probe, maps)
            loss = F.cross_entropy(
                _upsampled(logits, truth.shape[1:], first=(y, x), stride=label_stride),
                truth[:, y::label_stride, x::label_stride],
                ignore_index=IGNORE,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return self._score(probe)

    def _logits(
        self, probe: nn.Linear, maps: list[Float[Tensor, "c h w"]]
    ) -> Float[Tensor, "b classes h w"]:
        """The 1x1 convolution, as one matrix product an image."""
        by_image = [
            torch.addmm(probe.bias[:, None], probe.weight, image.to(self._device).flatten(1))
            for image in maps
        ]
        return torch.stack(by_image).unflatten(2, maps[0].shape[1:])

    @torch.inference_mode()
    def _score(self, probe: nn.Linear) -> ProbeResult:
        confusion = torch.zeros(self._num_classes, self._num_classes, dtype=torch.int64)
        predictions = []
        for rows, maps in self._test.parts("predictions"):
            for row, logits in zip(rows, self._logits(probe, maps), strict=True):
                mask = self._test_masks[row]
                upsampled = F.interpolate(logits[None], mask.shape, mode="bilinear")[0]
                predictions.append(upsampled.argmax(0).to(torch.uint8).cpu())
                confusion += confusion_matrix(
                    predictions[-1].long(), mask.long(), num_classes=self._num_classes
                )
        if not confusion.any():
            raise DataError("no pixel of the test images has a label; is the ignored value right?")
        return ProbeResult(
            mean_iou=float(mean_iou(confusion)),
            class_iou=tuple(class_iou(confusion).tolist()),
            pixel_accuracy=float(pixel_accuracy(confusion)),
            predictions=tuple(predictions),
        )


def _upsampled(
    logits: Float[Tensor, "b c h w"], size: tuple[int, ...], *, first: tuple[int, int], stride: int
) -> Float[Tensor, "b c _ _"]:
    """Bilinear to ``size``, computed only at every ``stride``-th row and column from ``first``."""
    ys, xs = (
        (torch.arange(start, length, stride, device=logits.device) + 0.5) * (2 / length) - 1
        for start, length in zip(first, size, strict=True)
    )
    places = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    return F.grid_sample(
        logits,
        places.expand(len(logits), -1, -1, -1),
        padding_mode="border",
        align_corners=False,
    )
