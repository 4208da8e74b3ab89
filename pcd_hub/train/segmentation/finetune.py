"""Fine-tuning for semantic segmentation: an FCN head on a backbone, everything trained.

    python -m pcd_hub.train.segmentation.finetune --data.source DIR --model resnet18.pcd

One run is one backbone at one seed. Protocol, hardware, time and result: recipes/finetune_seg.py.
Reading order: this file -> run.py -> segmentation/fcn.py -> segmentation/batches.py.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.labelled.segmentation_set import Mask, SegmentationSet
from pcd_hub.data.labelled.subset import segmentation_subset
from pcd_hub.errors import DataError
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.progress import progress
from pcd_hub.evaluate.results import data_sha256, finite_scores
from pcd_hub.method.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy
from pcd_hub.report.overlays import save_sample_overlays
from pcd_hub.train.batches import num_workers, plan_batches, resolve_run, shard
from pcd_hub.train.configs.command_line import parse, run_main
from pcd_hub.train.configs.segmentation import (
    FINETUNE_SEG,
    PROTOCOL_VERSION,
    FinetuneSegConfig,
    PolynomialSchedule,
    protocol,
    scaled_schedule,
)
from pcd_hub.train.labelled_splits import (
    open_segmentation_splits,
    resolve_label_format,
    survey_mask_splits,
    survey_masks,
)
from pcd_hub.train.labels.check import print_survey, warn_of_labels
from pcd_hub.train.launch import finish, on_main_process, start_accelerator
from pcd_hub.train.networks import broadcast_buffers, with_sync_batch_norm
from pcd_hub.train.optimizers import build_sgd, optimizer_step
from pcd_hub.train.results.evaluation import save_evaluation
from pcd_hub.train.run import TrainingRun
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.run_folder.preflight import check_places, finishing
from pcd_hub.train.run_folder.resume import labelled_inputs
from pcd_hub.train.segmentation.batches import RandomCrop, crop_batches, whole_images
from pcd_hub.train.segmentation.fcn import FCN, open_backbone, pixel_cross_entropy
from pcd_hub.weights.record import named_share


@dataclass(kw_only=True)
class Finetuning:
    """State of a run: one backbone at one seed."""

    config: FinetuneSegConfig
    accelerator: Accelerator
    folder: RunFolder
    schedule: PolynomialSchedule
    plan: BatchPlan
    train_set: SegmentationSet
    test_set: SegmentationSet
    data_sha256: str
    """sha256 of the fingerprints of both splits, before images to train on are drawn."""
    crop: RandomCrop
    backbone: EvaluatedModel
    model: nn.Module
    """Backbone and head, not wrapped by the Accelerator."""

    @property
    def loading(self) -> dict[str, Any]:
        """Return the options for reading images."""
        return {
            "num_workers": self.config.data.num_workers,
            "pin_memory": self.accelerator.device.type == "cuda",
        }

    def open_batches(self, plan: BatchPlan, _: object = None) -> Iterator[list[Tensor]]:
        """Open this process's crops, from ``plan.start_step`` on."""
        return crop_batches(self.train_set, self.crop, plan, **self.loading)


def main(arguments: list[str]) -> dict[str, Any] | None:
    """Parse the command line, train, and score the model on the test split.

    With ``--data.check``, only print and return a survey of the labels.
    """
    config_name, config = parse(FINETUNE_SEG, "small", arguments)
    accelerator = start_accelerator(trackers=config.run.trackers)
    if config.data.check:
        return print_survey(accelerator, lambda: survey_masks(config.data))
    finetuning = prepare(accelerator, config, config_name)
    train(finetuning)
    module = "pcd_hub.train.segmentation.finetune"
    command = shlex.join(["python", "-m", module, *arguments])
    with finishing(finetuning.folder.path):
        confusion = count_pixels(finetuning)
        finish(accelerator)
        if accelerator.is_main_process:
            save_result(finetuning, confusion, command=command)
            finetuning.folder.end_trackers()
    return None


def train(finetuning: Finetuning) -> None:
    """Train backbone and head on the cross-entropy of all labelled pixels."""
    config, accelerator, model = finetuning.config, finetuning.accelerator, finetuning.model
    wrapped, optimizer = accelerator.prepare(model, build_sgd(model, config.optim))
    run = TrainingRun(
        accelerator=accelerator,
        folder=finetuning.folder,
        plan=finetuning.plan,
        open_batches=finetuning.open_batches,
        network=model,
        optimizer=optimizer,
        state={"network": model, "optimizer": optimizer},
        learning_rate=finetuning.schedule.learning_rate,
        lr_option="--optim.lr",
    )
    torch.manual_seed(config.run.seed + accelerator.process_index)  # for dropout
    wrapped.train()
    for _, (crops,) in run.steps():
        images, masks = (each.to(accelerator.device, non_blocking=True) for each in crops)
        with accelerator.autocast():
            loss = pixel_cross_entropy(wrapped(images), masks)
        accelerator.backward(loss)
        norm = optimizer_step(wrapped, optimizer, accelerator)
        run.end_step(loss, norm)
    broadcast_buffers(model)


def prepare(accelerator: Accelerator, config: FinetuneSegConfig, config_name: str) -> Finetuning:
    """Build everything; invalid settings raise before the output folder is created."""
    schedule = scaled_schedule(config.optim, max_steps=config.run.max_steps)
    requested, data = config, replace(config.data, format=resolve_label_format(config.data))
    config = replace(config, data=data)
    all_training, test_set = open_segmentation_splits(data)
    warn_of_labels(
        accelerator, lambda: survey_mask_splits(data, all_training, test_set, decode_all=False)
    )
    workers = num_workers(data.num_workers, accelerator.device)
    on_main_process(accelerator, lambda: check_images(all_training, test_set, workers))
    train_set = segmentation_subset(
        all_training, share=config.data.train_share, seed=config.run.seed
    )
    plan = plan_batches(
        accelerator,
        global_batch_size=config.optim.global_batch_size,
        total_steps=schedule.steps,
        seed=config.run.seed,
        num_images=len(train_set),
        images=f"{train_set.name} has {len(train_set)} images",
    )
    config = resolve_run(config, plan, accelerator.device)
    backbone = open_backbone(
        config.model, output_stride=config.fcn.output_stride, seed=config.run.seed
    )
    crop = RandomCrop(config.data, mean=backbone.mean)
    torch.manual_seed(config.run.seed)  # the same head on every backbone
    model: nn.Module = FCN(backbone, config.fcn, num_classes=len(train_set.classes))
    if config.fcn.norm == "sync":
        model = with_sync_batch_norm(model, accelerator, required_by="--fcn.norm sync")
    check_places(accelerator, model, run=config.run, stored_as=None)
    folder = RunFolder.open(
        accelerator,
        config,
        requested=requested,
        default_name=config_name,
        inputs=labelled_inputs(backbone, train_set, test_set),
    )
    return Finetuning(
        config=config,
        accelerator=accelerator,
        folder=folder,
        schedule=schedule,
        plan=plan,
        train_set=train_set,
        test_set=test_set,
        data_sha256=data_sha256(all_training.fingerprint(), test_set.fingerprint()),
        crop=crop,
        backbone=backbone,
        model=model,
    )


def check_images(train_set: SegmentationSet, test_set: SegmentationSet, workers: int) -> None:
    """Read every test image and its mask: one that is broken must not end a finished training.

    Args:
        train_set: Training images, of which masks are read until two classes are found.
        test_set: Test images.
        workers: Processes that read images; 0 for none.

    Raises:
        DataError: If one cannot be read, or the masks have too few classes.
    """
    train_set.check_labelled(least=2)
    test_set.check_labelled(least=1)
    try:
        for _ in whole_images(test_set, range(len(test_set)), num_workers=workers):
            pass
    except BrokenImageError as error:
        raise DataError(
            f"{error.name} cannot be read ({error.reason}); repair or remove it"
        ) from error


def count_pixels(finetuning: Finetuning) -> Int64[Tensor, "classes classes"]:
    """Count the pixels of all test images by (truth, prediction); one process scores each image."""
    accelerator, test_set = finetuning.accelerator, finetuning.test_set
    num_classes, size = len(test_set.classes), len(test_set)
    total = torch.zeros(num_classes, num_classes, dtype=torch.long)
    rows = shard(size, accelerator.process_index, accelerator.num_processes)
    pairs = whole_images(test_set, rows, **finetuning.loading)
    hidden = not accelerator.is_main_process
    for image, mask in progress(pairs, "test images", total=len(rows), disable=hidden):
        predicted = segment(finetuning, image)
        total += confusion_matrix(predicted, mask.long(), num_classes=num_classes)
    assert sorted(gather_object(list(rows))) == list(range(size))
    summed: Any = accelerator.reduce(total.to(accelerator.device), "sum")
    return summed.cpu()


@torch.no_grad()
def segment(
    finetuning: Finetuning, image: UInt8[Tensor, "height width 3"]
) -> Int64[Tensor, "height width"]:
    """Predict the class of every pixel.

    Each image is a batch of its own: no other image's size changes its padding, so the scores do
    not depend on the number of processes.
    """
    accelerator, model = finetuning.accelerator, finetuning.model.eval()
    images = image.permute(2, 0, 1)[None].to(accelerator.device, non_blocking=True)
    with accelerator.autocast():
        scores = model(images)
    return scores[0].argmax(0).cpu()


def save_result(
    finetuning: Finetuning, confusion: Int64[Tensor, "classes classes"], *, command: str
) -> None:
    """Save the scores and a picture."""
    config, train_set, test_set = finetuning.config, finetuning.train_set, finetuning.test_set
    scores, by_class = iou_scores(confusion, test_set)
    save_evaluation(
        scores,
        task="semantic segmentation, fine-tuned",
        dataset=named_share(test_set.name, config.data.train_share),
        protocol=protocol(
            config,
            finetuning.schedule,
            batch_size_per_process=finetuning.plan.batch_size,
            training_set=f"{train_set.name} ({len(train_set)} images)",
            mixed_precision=str(finetuning.accelerator.mixed_precision),
        ),
        protocol_version=PROTOCOL_VERSION,
        command=command,
        num_images=len(test_set),
        data_sha256=finetuning.data_sha256,
        seed=config.run.seed,
        evaluated=finetuning.backbone,
        folder=finetuning.folder,
        details={"class_iou": [by_class]},
    )
    draw(finetuning)


def iou_scores(
    confusion: Int64[Tensor, "classes classes"], test_set: SegmentationSet
) -> tuple[dict[str, float], dict[str, float]]:
    """Compute the table's metrics in %, and the IoU in [0, 1] of every class that occurs.

    Raises:
        DataError: If no pixel has a label.
    """
    if not confusion.any():
        raise DataError(f"no pixel of {test_set.name} has a label; use another --data.test-split")
    scores = {
        "mean IoU": 100 * float(mean_iou(confusion)),
        "pixel accuracy": 100 * float(pixel_accuracy(confusion)),
    }
    by_class = dict(zip(test_set.classes, class_iou(confusion).tolist(), strict=True))
    return scores, finite_scores(by_class)


def draw(finetuning: Finetuning) -> None:
    """Draw images from the whole test split, their labels and the predictions."""

    def predict(_row: int, image: Image.Image) -> Mask:
        return segment(finetuning, torch.from_numpy(np.array(image))).numpy().astype(np.uint8)

    path = finetuning.folder.path / "pictures" / "overlays.png"
    save_sample_overlays(path, finetuning.test_set, {finetuning.config.model: predict})


if __name__ == "__main__":
    run_main(main)
