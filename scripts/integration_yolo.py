"""A detector of ultralytics: short trainings by its own trainer, and their scores."""

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import pcd_hub
from integration_training import Schedule, coco_split
from pcd_hub.data.labelled.coco import CocoImage, CocoSplit
from pcd_hub.errors import ConfigError
from pcd_hub.train.detection.batches import Labels, coco_results
from pcd_hub.train.detection.scores import score_detections

_MAX_OBJECTS = 100
"""Per image, as COCO counts them."""
_MIN_SCORE = 0.001


def ultralytics_yolo(weight: str | None, num_classes: int) -> nn.Module:
    """Build the YOLO of ``pcd-hub export --to ultralytics``; its trainer sets the classes."""
    del num_classes
    with tempfile.TemporaryDirectory() as scratch:
        folder = pcd_hub.export(
            weight or "resnet18.pcd", to="ultralytics", out=Path(scratch) / "exported"
        )
        ((description,), (file,)) = folder.glob("*.yaml"), folder.glob("*.pt")
        model = _ultralytics().YOLO(str(description), verbose=False)
        # A model that has loaded nothing would be built anew by train, with another neck and head.
        model.load(str(file) if weight else model.model)
    return model


class YoloTask:
    """Object detection by ultralytics' trainer, scored by COCO's average precision of boxes.

    Args:
        data: A folder with images/SPLIT and annotations/instances_SPLIT.json.
        test_split: The split to score on; training is on ``train``.
        image_size: The longer side to which images are resized; they are padded to a square.
    """

    def __init__(self, data: Path, *, test_split: str, image_size: int) -> None:
        self._train, self._test = coco_split(data, "train"), coco_split(data, test_split)
        self._labels = Labels(self._train.categories)
        self._image_size = image_size
        self.num_classes = len(self._labels.category_ids)

    def train(self, model: Any, schedule: Schedule) -> None:
        """Train all parameters; everything that is not given has ultralytics' default.

        Raises:
            ConfigError: If the steps are not whole epochs.
        """
        steps_per_epoch = math.ceil(len(self._train.images) / schedule.batch_size)
        epochs, remainder = divmod(schedule.steps, steps_per_epoch)
        if remainder or not epochs:
            raise ConfigError(
                f"--steps {schedule.steps}: ultralytics trains whole epochs; expected a multiple "
                f"of {steps_per_epoch}, an epoch"
            )
        with tempfile.TemporaryDirectory() as scratch:
            model.train(
                data=str(self.write(Path(scratch))),
                epochs=epochs,
                imgsz=self._image_size,
                batch=schedule.batch_size,
                nbs=schedule.batch_size,  # a step per batch instead of one per 64 images
                optimizer="AdamW",
                lr0=schedule.lr,
                warmup_epochs=1,
                mosaic=0.0,  # as in the last ten epochs by default
                seed=schedule.seed,
                project=scratch,
                device="cpu",
                workers=0,
                amp=False,
                val=False,
                plots=False,
                verbose=False,
            )

    @torch.no_grad()
    def score(self, model: Any) -> dict[str, float]:
        """Return box AP and AP50 in %."""
        found = []
        for image in self._test.images:
            (output,) = model.predict(
                str(image.path),
                imgsz=self._image_size,
                conf=_MIN_SCORE,
                max_det=_MAX_OBJECTS,
                device="cpu",
                verbose=False,
            )
            boxes = output.boxes
            label = {"boxes": boxes.xyxy, "scores": boxes.conf, "labels": boxes.cls.int() + 1}
            found += coco_results(image, label, self._labels)
        scores, _ = score_detections(self._test, found, masks=False)
        return {name: scores[name] for name in ("box AP", "box AP50")}

    def write(self, folder: Path) -> Path:
        """Write the images and labels in ultralytics' layout; return its description."""
        self._write_split(folder, "train", self._train)
        self._write_split(folder, "val", self._test)  # the trainer reads it, and chooses nothing
        names = dict(enumerate(self._train.categories[key] for key in self._labels.category_ids))
        splits = {split: f"images/{split}" for split in ("train", "val")}
        file = folder / "data.yaml"
        file.write_text(yaml.safe_dump({"path": str(folder), **splits, "names": names}))
        return file

    def _write_split(self, folder: Path, name: str, split: CocoSplit) -> None:
        images, labels = folder / "images" / name, folder / "labels" / name
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for image in split.images:
            shutil.copyfile(image.path, images / f"{image.image_id}{image.path.suffix}")
            (labels / f"{image.image_id}.txt").write_text("".join(self._lines(image)))

    def _lines(self, image: CocoImage) -> list[str]:
        lines = []
        for each in image.objects:
            if not each.is_crowd:
                left, top, width, height = each.box
                x, y = (left + width / 2) / image.width, (top + height / 2) / image.height
                size = f"{width / image.width} {height / image.height}"
                lines.append(f"{self._labels.label(each.category_id) - 1} {x} {y} {size}\n")
        return lines


YOLOS = {"ultralytics YOLO11": ultralytics_yolo}


def _ultralytics() -> Any:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    import ultralytics  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional

    return ultralytics
