r"""Detection: Mask R-CNN or Faster R-CNN trained on a backbone, scored as COCO does.

One run is one backbone at one seed, in the folder with evaluation.json:

    python recipes/detect.py --data.source DATA --model resnet18.pcd        # config small, a CPU
    accelerate launch --multi_gpu --num_processes 8 recipes/detect.py coco_r18_fpn_1x \
        --data.source COCO --model resnet18.pcd

The first, on 205 blood smears (BCCD at 320 x 240), took 6 to 14 minutes on one busy core and gave
on 87 others, three seeds: box AP 44.9 +- 0.9 at random start, 46.5 +- 0.4 with the quickstart
student. The second has not been run.

The schedules are detectron2's: batches of 16, learning rate 0.02, 90k iterations (1x) or 180k (2x),
a tenth of the learning rate after six and again after eight ninths, 1000 iterations of warm-up.
Fewer images a step scale it by rule, ``--optim.global-batch-size 4``: a quarter of the learning
rate, four times the iterations, so that as many pictures are seen. ``--run.max-steps`` squeezes a
schedule into fewer steps, which is another protocol, and evaluation.json says so.

Everything is trained, batch norm too, and there is batch norm in the pyramid or behind the C4 head:
the protocol for backbones trained without labels, and the one under which a random start can learn.
``--detector.norm frozen --detector.frozen-stages 2`` is that of supervised ImageNet backbones.
Pictures without objects are left out of training, not of the test; crowds likewise.
``--run.resume`` goes on from the last checkpoint, or scores a finished run again.

Reading order: this file -> finetuning.py -> detectors.py -> detection_batches.py -> coco_data.py.
Results: recipes/README.md.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from pcd_hub.data.labelled.coco import CocoSplit
from pcd_hub.data.loader import BatchPlan
from pcd_hub.evaluate.models import EvaluatedModel, open_model
from pcd_hub.evaluate.progress import progress
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train.configs.command_line import parse, run
from pcd_hub.train.configs.detection import DETECT, DetectConfig
from pcd_hub.train.detection.batches import (
    Example,
    Labels,
    coco_results,
    on_device,
    read_images,
    training_batches,
)
from pcd_hub.train.detection.detectors import build_detector
from pcd_hub.train.detection.figures import save_detections
from pcd_hub.train.detection.precise_bn import take_batch_norm_statistics
from pcd_hub.train.detection.schedule import DetectionSchedule, scaled_schedule
from pcd_hub.train.detection.scores import dataset_name, protocol, scored, shown_images
from pcd_hub.train.detection.splits import read_splits, with_masks
from pcd_hub.train.finetuning import (
    inputs_of,
    num_workers,
    plan_batches,
    sgd,
    shard,
    train,
    with_sync_batch_norm,
)
from pcd_hub.train.launch import finish, start_accelerator
from pcd_hub.train.run_folder.folder import RunFolder, provenance
from pcd_hub.train.run_folder.preflight import check_places, finishing
from pcd_hub.train.run_folder.resume import protocol_note


def main(arguments: list[str]) -> None:
    """Everything that can be wrong is found before the output folder is made; then train, score."""
    config_name, config = parse(DETECT, "small", arguments)
    schedule = scaled_schedule(config.optim, max_steps=config.run.max_steps)
    accelerator = start_accelerator(trackers=config.run.trackers)
    train_split, val_split = read_splits(config.data, read_masks=config.detector.masks != "no")
    masks = with_masks(config.detector.masks, train_split, val_split)
    num_images = len(train_split.with_objects())
    plan = plan_batches(
        schedule,
        config.run,
        accelerator,
        global_batch_size=config.optim.global_batch_size,
        num_images=num_images,
        images=f"{train_split.file} has {num_images} pictures with objects",
    )
    under_test = open_model(config.model, seed=config.run.seed, features_only=True)
    torch.manual_seed(
        config.run.seed
    )  # of the new layers: the same on every backbone of these widths
    labels = Labels(train_split.categories)
    detector: nn.Module = build_detector(
        under_test, config.detector, num_classes=len(labels.category_ids), masks=masks
    )
    detector = with_sync_batch_norm(detector, config.detector.norm, "--detector.norm", accelerator)
    check_places(accelerator, detector, output_dir=config.run.output_dir, stored_as=None)
    detection = Detection(
        config=config,
        accelerator=accelerator,
        folder=RunFolder.open(
            accelerator,
            config,
            default_name=config_name,
            inputs=inputs_of(config.model, under_test.weights_sha256, train_split, val_split),
        ),
        schedule=schedule,
        plan=plan,
        train_split=train_split,
        val_split=val_split,
        labels=labels,
        masks=masks,
        under_test=under_test,
        detector=detector,
    )
    train_detector(detection)
    command = shlex.join(["python", "recipes/detect.py", *arguments])
    with finishing(detection.folder.path):
        take_precise_statistics(detection)
        predictions = predict(detection)
        finish(accelerator)
        if accelerator.is_main_process:
            keep(detection, predictions, command=command)
            detection.folder.end_trackers()


@dataclass(kw_only=True)
class Detection:
    """One backbone's run."""

    config: DetectConfig
    accelerator: Accelerator
    folder: RunFolder
    schedule: DetectionSchedule
    plan: BatchPlan
    train_split: CocoSplit
    val_split: CocoSplit
    labels: Labels
    masks: bool
    under_test: EvaluatedModel
    detector: nn.Module

    @property
    def loading(self) -> dict[str, Any]:
        """How pictures are read."""
        return {
            "num_workers": num_workers(self.config.data.num_workers, self.accelerator),
            "pin_memory": self.accelerator.device.type == "cuda",
        }

    def batches(self, plan: BatchPlan) -> Iterator[list[Example]]:
        """This process's part of every global batch."""
        return training_batches(
            self.train_split.with_objects(),
            self.labels,
            plan,
            masks=self.masks,
            by_orientation=self.config.data.group_by_orientation,
            **self.loading,
        )

    def losses(self, detector: nn.Module, examples: list[Example]) -> dict[str, Tensor]:
        """As torchvision's detectors give them in training."""
        images, targets = on_device(examples, self.accelerator.device)
        return detector(images, targets)


def train_detector(detection: Detection) -> None:
    """With the losses that torchvision's detectors give; the loop is in finetuning.py."""
    config, accelerator = detection.config, detection.accelerator
    wrapped, optimizer = accelerator.prepare(
        detection.detector, sgd(detection.detector, config.optim)
    )
    detection.detector = accelerator.unwrap_model(wrapped)

    train(
        wrapped,
        detection.batches,
        detection.losses,
        optimizer=optimizer,
        schedule=detection.schedule,
        plan=detection.plan,
        run=config.run,
        folder=detection.folder,
        accelerator=accelerator,
    )


def take_precise_statistics(detection: Detection) -> None:
    """PreciseBN, on the batches that would have come next."""
    accelerator, plan = detection.accelerator, detection.plan
    end = plan.total_steps + detection.config.detector.precise_bn_batches
    if end == plan.total_steps or detection.config.detector.norm == "frozen":
        return
    # Of the sizes and regions that are drawn, so that a finished run that is resumed agrees.
    torch.manual_seed(plan.seed + accelerator.process_index)

    def forward(detector: nn.Module, examples: list[Example]) -> None:
        with accelerator.autocast():
            detection.losses(detector, examples)

    batches = detection.batches(replace(plan, start_step=plan.total_steps, total_steps=end))
    take_batch_norm_statistics(detection.detector, batches, forward, accelerator)


@torch.no_grad()
def predict(detection: Detection) -> list[dict[str, Any]]:
    """COCO results for every held-out picture, each found by exactly one process.

    One picture at a time, so that no other picture's size changes its padding: the results do not
    depend on the number of processes.
    """
    accelerator, detector = detection.accelerator, detection.detector.eval()
    images = detection.val_split.images
    indices = shard(len(images), accelerator.process_index, accelerator.num_processes)
    read = read_images([images[index] for index in indices], **detection.loading)
    mine: list[tuple[int, list[dict[str, Any]]]] = []
    pictures = zip(indices, read, strict=True)
    hidden = not accelerator.is_main_process
    for index, pixels in progress(pictures, "test images", total=len(indices), disable=hidden):
        with accelerator.autocast():
            (output,) = detector([pixels.to(accelerator.device, non_blocking=True) / 255])
        mine.append((index, coco_results(images[index], output, detection.labels)))
    return one_per_image(gather_object(mine), len(images))


def one_per_image(
    gathered: list[tuple[int, list[dict[str, Any]]]], count: int
) -> list[dict[str, Any]]:
    """The results in the order of the pictures; a picture seen twice or never is our mistake."""
    assert sorted(index for index, _ in gathered) == list(range(count))
    return [each for _, results in sorted(gathered, key=lambda pair: pair[0]) for each in results]


def keep(detection: Detection, predictions: list[dict[str, Any]], *, command: str) -> None:
    """Write what was found (a COCO results file), score it, draw some."""
    config, folder, split = detection.config, detection.folder, detection.val_split
    (folder.path / "detections.json").write_text(json.dumps(predictions) + "\n")
    scores, details = scored(split, predictions, masks=detection.masks, voc=config.data.voc_scores)
    evaluation = Evaluation(
        task="object detection" + " and instance segmentation" * detection.masks,
        dataset=dataset_name(config.data),
        protocol=protocol(
            config,
            detection.schedule,
            masks=detection.masks,
            num_training_images=len(detection.train_split.with_objects()),
            is_test_trained_on=detection.train_split.file == split.file,
            num_processes=detection.accelerator.num_processes,
            mixed_precision=str(detection.accelerator.mixed_precision),
        )
        + protocol_note(folder.changes),
        command=command,
        images=len(split.images),
        seeds=(config.run.seed,),
        units=dict.fromkeys(scores, "%"),
        scores={},
        details=provenance(detection.accelerator, folder) | folder.recorded_changes(),
    ).with_model(
        config.model,
        {name: (value,) for name, value in scores.items()},
        weights_sha256=detection.under_test.weights_sha256,
        details=details,
    )
    evaluation.save(folder.path)
    save_detections(
        folder.path / "pictures" / "detections.png",
        shown_images(split),
        predictions,
        split.categories,
    )
    print(f"\n{evaluation.table()}\n\nin {folder.path}")


if __name__ == "__main__":
    run(main)
