"""Linear segmentation probe: which classes a frozen backbone separates, pixel by pixel.

    python recipes/linear_seg.py --data.source DIR --models random:resnet18 resnet18.pcd
    python recipes/linear_seg.py ade20k --data.source ade20k:DIR --models resnet18.pcd

DIR holds ``images/SPLIT``, ``masks/SPLIT`` and ``classes.json``. The features are computed once for
each model, then BatchNorm and a 1x1 convolution are trained on them, once a seed. Results:
recipes/README.md.
"""

import dataclasses
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pcd_hub.data.labelled.sets import Mask, SegmentationSet
from pcd_hub.data.reading import read_batches
from pcd_hub.evaluate.feature_maps import compute_device, reading_processes
from pcd_hub.evaluate.models import EvaluatedModel, check_models, for_each_seed
from pcd_hub.evaluate.progress import progress_of
from pcd_hub.evaluate.results import Evaluation, finite_scores
from pcd_hub.evaluate.segmentation import LabelledImages, LinearProbe, ProbeResult, StageFeatures
from pcd_hub.report.pictures import save_some_overlays
from pcd_hub.train.configs.command_line import parse, run
from pcd_hub.train.configs.probes import LINEAR_SEG, LinearSegConfig
from pcd_hub.train.labelled_splits import open_splits
from pcd_hub.train.launch import quiet_logs
from pcd_hub.train.run_folder.folder import new_folder, surroundings


def main(arguments: list[str]) -> None:
    """Parse, probe every model, write and print the table."""
    _, config = parse(LINEAR_SEG, "folder", arguments)
    quiet_logs()
    check_models(config.models, config.run.seeds)
    train, test = open_splits(config.data)
    folder = new_folder(config.run.output_dir, "linear_seg")
    evaluation = Evaluation(
        task="linear segmentation probe",
        dataset=test.name,
        protocol=_protocol(config, train),
        command=shlex.join(["python", "recipes/linear_seg.py", *arguments]),
        images=len(test),
        seeds=config.run.seeds,
        units={"mean IoU": "%", "pixel accuracy": "%"},
        scores={},
        details=surroundings(),
    )
    shown: dict[str, ProbeResult] = {}
    for name in config.models:
        started = time.monotonic()
        under_test, results = probe_model(name, config, train, test)
        shown[name] = results[0]
        evaluation = _with_model(
            evaluation, under_test, results, train.classes, time.monotonic() - started
        )
        evaluation.save(folder)
        print(f"{name}: {100 * results[0].mean_iou:.1f} % mean IoU, seed {config.run.seeds[0]}")
    _draw(folder / "pictures" / "overlays.png", test, shown)
    print(f"\n{evaluation.table()}\n\n{folder / 'evaluation.json'}")


def probe_model(
    name: str, config: LinearSegConfig, train: SegmentationSet, test: SegmentationSet
) -> tuple[EvaluatedModel, list[ProbeResult]]:
    """One result a seed."""
    size, settings = config.data.image_size, dataclasses.asdict(config.probe)
    num_stages, keep = settings.pop("num_stages"), settings.pop("keep_gigabytes")
    settings["learning_rate"] = settings.pop("lr")
    workers = reading_processes(config.data.num_workers)
    train_images = squashed(train, size, masks_too=True, num_workers=workers)
    test_images = squashed(test, size, masks_too=False, num_workers=workers)

    def with_features(under_test: EvaluatedModel) -> LinearProbe:
        return LinearProbe(
            StageFeatures(
                under_test.model.to(compute_device()),
                num_stages=num_stages,
                mean=under_test.mean,
                std=under_test.std,
            ),
            train_images,
            test_images,
            num_classes=len(train.classes),
            keep_bytes=int(keep * 1024**3),
            progress=progress_of(name),
        )

    seen = [
        (under_test, probe.run(**settings, seed=seed))
        for seed, under_test, probe in for_each_seed(
            name, config.run.seeds, with_features, image_size=size
        )
    ]
    return seen[0][0], [result for _, result in seen]


def squashed(
    images: SegmentationSet, size: int, *, masks_too: bool, num_workers: int
) -> LabelledImages:
    """Images at ``size`` x ``size``, whatever their shape; masks too, or as they are."""
    masks = MasksOf(images, size if masks_too else None)
    return LabelledImages(
        images=SquashedImages(images, size, masks, num_workers=num_workers), masks=masks
    )


class SquashedImages:
    """Read and resized when asked; the mask, without which no image is taken, goes to ``masks``."""

    def __init__(
        self, images: SegmentationSet, size: int, masks: "MasksOf", *, num_workers: int
    ) -> None:
        self._images = images
        self._size = size
        self._masks = masks
        self._num_workers = num_workers

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: list[int]) -> Tensor:
        (found,) = self._read([rows], num_workers=0)
        return found

    def batches(self, rows: Sequence[list[int]]) -> Iterator[Tensor]:
        """Yield the images of each list of rows, read by worker processes."""
        return self._read(rows, num_workers=self._num_workers)

    def _read(self, rows: Sequence[list[int]], *, num_workers: int) -> Iterator[Tensor]:
        image_bytes = 3 * self._size**2 + self._masks[0].numel()
        batches = read_batches(
            partial(_squashed_pair, self._images, self._size, self._masks.size),
            ([(row, row not in self._masks) for row in each] for each in rows),
            num_workers=num_workers,
            batch_bytes=image_bytes * max(map(len, rows), default=0),
            collate=_collate,
            pin_memory=compute_device() == "cuda",
        )
        for batch in batches:
            self._masks.keep(batch.masks, batch.mask_sizes)
            yield batch.images.permute(0, 3, 1, 2).contiguous()


class MasksOf:
    """The masks of a set, each read with its image: kept, a byte a pixel."""

    def __init__(self, images: SegmentationSet, size: int | None) -> None:
        self._images = images
        self.size = size
        """Height and width in pixels to which they are squashed; None leaves them as they are."""
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, row: int) -> bool:
        return row in self._kept

    def __getitem__(self, row: int) -> Tensor:
        if row not in self._kept:
            self._kept[row] = _squashed_mask(self._images.pair(row)[1], self.size)
        return self._kept[row]

    def keep(self, masks: Tensor, sizes: Mapping[int, tuple[int, int]]) -> None:
        """Remember masks that were read, given one after the other with their sizes by row."""
        parts = masks.split([height * width for height, width in sizes.values()])
        # Copies: what comes of a worker is a file in shared memory, of which there is little.
        for (row, size), part in zip(sizes.items(), parts, strict=True):
            self._kept[row] = part.clone().view(size)


class _Pair(NamedTuple):
    row: int
    image: Tensor
    """``(size, size, 3)``"""
    mask: Tensor | None
    """If it was asked for."""


class _Batch(NamedTuple):
    images: Tensor
    """``(b, size, size, 3)``"""
    masks: Tensor
    """One after the other, flat: each tensor of its own would be an open file."""
    mask_sizes: dict[int, tuple[int, int]]
    """By row, in the order of ``masks``."""


def _squashed_pair(
    images: SegmentationSet, size: int, mask_size: int | None, key: tuple[int, bool]
) -> _Pair:
    row, with_mask = key
    picture, mask = images.pair(row) if with_mask else (images.image(row), None)
    pixels = picture.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3)
    kept = None if mask is None else _squashed_mask(mask, mask_size)
    return _Pair(row, torch.from_numpy(np.array(pixels)), kept)


def _squashed_mask(mask: Mask, size: int | None) -> Tensor:
    squashed = Image.fromarray(mask)
    if size is not None:
        squashed = squashed.resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(squashed))


def _collate(pairs: list[_Pair]) -> _Batch:
    masks = {pair.row: pair.mask for pair in pairs if pair.mask is not None}
    return _Batch(
        images=torch.stack([pair.image for pair in pairs]),
        masks=torch.cat([torch.empty(0, dtype=torch.uint8), *map(torch.flatten, masks.values())]),
        mask_sizes={row: (mask.shape[0], mask.shape[1]) for row, mask in masks.items()},
    )


def _protocol(config: LinearSegConfig, train: SegmentationSet) -> str:
    probe, size = config.probe, config.data.image_size
    return (
        f"frozen backbone, whole images squashed to {size} x {size} (bicubic); BatchNorm "
        "(statistics of the whole training set) and a 1x1 convolution on the last "
        f"{probe.num_stages} stages (of a ViT: blocks, through its final norm), bilinear to the "
        f"finest; trained on {train.name} ({len(train)} images) without augmentation for "
        f"{probe.steps} steps of {probe.batch_size}, AdamW {probe.lr:g} along half a "
        f"cosine without warm-up, weight decay {probe.weight_decay:g}, loss at 1 of "
        f"{probe.label_stride} x {probe.label_stride} pixels; one scale, no sliding window, logits "
        "bilinear to label size; mean over the classes in truth or prediction"
    )


def _with_model(
    evaluation: Evaluation,
    under_test: EvaluatedModel,
    results: list[ProbeResult],
    classes: tuple[str, ...],
    seconds: float,
) -> Evaluation:
    row = {
        "mean IoU": tuple(100 * result.mean_iou for result in results),
        "pixel accuracy": tuple(100 * result.pixel_accuracy for result in results),
    }
    by_class = [
        finite_scores(dict(zip(classes, result.class_iou, strict=True))) for result in results
    ]
    return evaluation.with_model(
        under_test.name,
        row,
        weights_sha256=under_test.weights_sha256,
        details={"class_iou": by_class, "seconds": round(seconds, 1)},
    )


def _draw(path: Path, test: SegmentationSet, results: Mapping[str, ProbeResult]) -> None:
    """Images from all over the split, their labels, and what each model's probe says of them."""

    def predicted(result: ProbeResult, row: int, _image: Image.Image) -> Mask:
        return result.predictions[row].numpy()

    save_some_overlays(path, test, {k: partial(predicted, r) for k, r in results.items()})


if __name__ == "__main__":
    run(main)
