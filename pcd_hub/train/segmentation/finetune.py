r"""Segmentation, fine-tuned: an FCN head on a backbone, everything trained.

One run is one backbone at one seed, in the folder with evaluation.json:

    python recipes/finetune_seg.py --data.source DIR --model resnet18.pcd        # small, a CPU
    accelerate launch --multi_gpu --num_processes 8 recipes/finetune_seg.py cityscapes_r18_fcn \
        --data.source cityscapes:DIR --model resnet18.pcd

DIR holds ``images/SPLIT``, ``masks/SPLIT`` and ``classes.json``. The first, on 418 photographs of
facades at 192 x 192, takes 2 to 3 minutes on one core and gives on 90 others, one seed: mean IoU
9.8 at random start, 15.5 with the quickstart student, 16.1 with its teacher. The second has not
been run.

The schedules are ours, after what is common: 40k steps of 16 crops, SGD with momentum 0.9, learning
rate 0.01 falling to 0 with power 0.9, no warm-up. Fewer images a step scale it by rule,
``--optim.global-batch-size 4``: a quarter of the learning rate, four times the iterations, so
that as many pictures are seen. ``--run.max-steps`` squeezes a schedule into fewer steps, which is
another protocol, and evaluation.json says so.

Everything is trained, batch norm too: the protocol under which a random start can learn. What
frozen features separate is another question, and linear_seg.py answers it. ``--run.resume`` goes on
from the last checkpoint, or scores a finished run again; ``compare.py`` joins models and seeds.

Reading order: this file -> finetuning.py -> fcn.py -> segmentation_batches.py. Results:
recipes/README.md.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from pcd_hub.data.labelled.sets import Mask, SegmentationSet
from pcd_hub.data.loader import BatchPlan
from pcd_hub.errors import DataError
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.progress import progress
from pcd_hub.evaluate.results import Evaluation, finite_scores
from pcd_hub.method.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy
from pcd_hub.report.overlays import save_some_overlays
from pcd_hub.train.configs.command_line import parse, run
from pcd_hub.train.configs.segmentation import (
    FINETUNE_SEG,
    FinetuneSegConfig,
    PolynomialSchedule,
    protocol,
    scaled_schedule,
)
from pcd_hub.train.finetuning import (
    inputs_of,
    num_workers,
    plan_batches,
    sgd,
    shard,
    train,
    with_sync_batch_norm,
)
from pcd_hub.train.labelled_splits import open_splits
from pcd_hub.train.launch import finish, start_accelerator
from pcd_hub.train.run_folder.folder import RunFolder, provenance
from pcd_hub.train.run_folder.preflight import check_places, finishing
from pcd_hub.train.run_folder.resume import protocol_note
from pcd_hub.train.segmentation.batches import Crops, RandomCrop, training_batches, whole_images
from pcd_hub.train.segmentation.fcn import FCN, open_backbone, pixel_cross_entropy


def main(arguments: list[str]) -> None:
    """Everything that can be wrong is found before the output folder is made; then train, score."""
    config_name, config = parse(FINETUNE_SEG, "small", arguments)
    schedule = scaled_schedule(config.optim, max_steps=config.run.max_steps)
    accelerator = start_accelerator(trackers=config.run.trackers)
    train_set, test_set = open_splits(config.data)
    plan = plan_batches(
        schedule,
        config.run,
        accelerator,
        global_batch_size=config.optim.global_batch_size,
        num_images=len(train_set),
        images=f"{train_set.name} has {len(train_set)} images",
    )
    under_test = open_backbone(
        config.model, output_stride=config.fcn.output_stride, seed=config.run.seed
    )
    crop = RandomCrop(config.data, mean=under_test.mean)
    torch.manual_seed(config.run.seed)  # of the head: the same on every backbone
    model: nn.Module = FCN(under_test, config.fcn, num_classes=len(train_set.classes))
    model = with_sync_batch_norm(model, config.fcn.norm, "--fcn.norm", accelerator)
    check_places(accelerator, model, output_dir=config.run.output_dir, stored_as=None)
    finetuning = Finetuning(
        config=config,
        accelerator=accelerator,
        folder=RunFolder.open(
            accelerator,
            config,
            default_name=config_name,
            inputs=inputs_of(config.model, under_test.weights_sha256, train_set, test_set),
        ),
        schedule=schedule,
        plan=plan,
        train_set=train_set,
        test_set=test_set,
        crop=crop,
        under_test=under_test,
        model=model,
    )
    train_fcn(finetuning)
    command = shlex.join(["python", "recipes/finetune_seg.py", *arguments])
    with finishing(finetuning.folder.path):
        confusion = count_pixels(finetuning)
        finish(accelerator)
        if accelerator.is_main_process:
            keep(finetuning, confusion, command=command)
            finetuning.folder.end_trackers()


@dataclass(kw_only=True)
class Finetuning:
    """One backbone's run."""

    config: FinetuneSegConfig
    accelerator: Accelerator
    folder: RunFolder
    schedule: PolynomialSchedule
    plan: BatchPlan
    train_set: SegmentationSet
    test_set: SegmentationSet
    crop: RandomCrop
    under_test: EvaluatedModel
    model: nn.Module


def train_fcn(finetuning: Finetuning) -> None:
    """With the cross-entropy of all labelled pixels; the loop is in finetuning.py."""
    config, accelerator = finetuning.config, finetuning.accelerator
    wrapped, optimizer = accelerator.prepare(finetuning.model, sgd(finetuning.model, config.optim))
    finetuning.model = accelerator.unwrap_model(wrapped)

    def batches_of(plan: BatchPlan) -> Iterator[Crops]:
        return training_batches(
            finetuning.train_set,
            finetuning.crop,
            plan,
            num_workers=num_workers(config.data.num_workers, accelerator),
            pin_memory=accelerator.device.type == "cuda",
        )

    def losses_of(model: nn.Module, crops: Crops) -> dict[str, Tensor]:
        parts = crops.images, crops.masks
        images, masks = (part.to(accelerator.device, non_blocking=True) for part in parts)
        return {"loss": pixel_cross_entropy(model(images), masks)}

    train(
        wrapped,
        batches_of,
        losses_of,
        optimizer=optimizer,
        schedule=finetuning.schedule,
        plan=finetuning.plan,
        run=config.run,
        folder=finetuning.folder,
        accelerator=accelerator,
    )


def count_pixels(finetuning: Finetuning) -> Int64[Tensor, "classes classes"]:
    """Pixels of all test images by (truth, predicted), each image by exactly one process."""
    accelerator, test_set = finetuning.accelerator, finetuning.test_set
    num_classes, size = len(test_set.classes), len(test_set)
    total = torch.zeros(num_classes, num_classes, dtype=torch.long)
    mine = shard(size, accelerator.process_index, accelerator.num_processes)
    pairs = whole_images(
        test_set,
        mine,
        num_workers=num_workers(finetuning.config.data.num_workers, accelerator),
        pin_memory=accelerator.device.type == "cuda",
    )
    hidden = not accelerator.is_main_process
    for image, mask in progress(pairs, "test images", total=len(mine), disable=hidden):
        predicted = predict(finetuning, image)
        total += confusion_matrix(predicted, mask.long(), num_classes=num_classes)
    assert sorted(gather_object(list(mine))) == list(range(size))
    summed: Any = accelerator.reduce(total.to(accelerator.device), "sum")
    return summed.cpu()


@torch.no_grad()
def predict(
    finetuning: Finetuning, image: UInt8[Tensor, "height width 3"]
) -> Int64[Tensor, "height width"]:
    """The class of every pixel.

    One image at a time, so that no other image's size changes its padding: the scores do not depend
    on the number of processes.
    """
    accelerator, model = finetuning.accelerator, finetuning.model.eval()
    pixels = image.permute(2, 0, 1)[None].to(accelerator.device, non_blocking=True)
    with accelerator.autocast():
        scores = model(pixels)
    return scores[0].argmax(0).cpu()


def keep(
    finetuning: Finetuning, confusion: Int64[Tensor, "classes classes"], *, command: str
) -> None:
    """Write the scores, draw some images."""
    config, folder = finetuning.config, finetuning.folder
    train_set, test_set = finetuning.train_set, finetuning.test_set
    row, by_class = scored(confusion, test_set)
    evaluation = Evaluation(
        task="semantic segmentation, fine-tuned",
        dataset=test_set.name,
        protocol=protocol(
            config,
            finetuning.schedule,
            batch_size_per_process=finetuning.plan.batch_size,
            training_set=f"{train_set.name} ({len(train_set)} images)",
            mixed_precision=str(finetuning.accelerator.mixed_precision),
        )
        + protocol_note(folder.changes),
        command=command,
        images=len(test_set),
        seeds=(config.run.seed,),
        units=dict.fromkeys(row, "%"),
        scores={},
        details=provenance(finetuning.accelerator, folder) | folder.recorded_changes(),
    ).with_model(
        config.model,
        {name: (value,) for name, value in row.items()},
        weights_sha256=finetuning.under_test.weights_sha256,
        details={"class_iou": [by_class]},
    )
    evaluation.save(folder.path)
    draw(finetuning)
    print(f"\n{evaluation.table()}\n\nin {folder.path}")


def scored(
    confusion: Int64[Tensor, "classes classes"], test_set: SegmentationSet
) -> tuple[dict[str, float], dict[str, float]]:
    """The table's metrics in %, and the IoU in [0, 1] of every class that occurs.

    Raises:
        DataError: If no pixel has a label.
    """
    if not confusion.any():
        raise DataError(f"no pixel of {test_set.name} has a label; name another --data.test-split")
    row = {
        "mean IoU": 100 * float(mean_iou(confusion)),
        "pixel accuracy": 100 * float(pixel_accuracy(confusion)),
    }
    by_class = dict(zip(test_set.classes, class_iou(confusion).tolist(), strict=True))
    return row, finite_scores(by_class)


def draw(finetuning: Finetuning) -> None:
    """Images from all over the test split, their labels, and what the model says of them."""

    def predicted(_row: int, image: Image.Image) -> Mask:
        return predict(finetuning, torch.from_numpy(np.array(image))).numpy().astype(np.uint8)

    path = finetuning.folder.path / "pictures" / "overlays.png"
    save_some_overlays(path, finetuning.test_set, {finetuning.config.model: predicted})


if __name__ == "__main__":
    run(main)
