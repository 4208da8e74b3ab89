"""Object detection: Mask R-CNN or Faster R-CNN trained on a backbone, scored by COCO's rules.

    python -m pcd_hub.train.detection.detect --data.source DATA --model resnet18.pcd

One run is one backbone at one seed. Protocol, hardware, time and result: recipes/detect.py.
Reading order: this file -> run.py -> detection/detectors.py -> detection/batches.py.
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

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.labelled.coco import CocoSplit
from pcd_hub.data.labelled.subset import coco_subset
from pcd_hub.evaluate.models import EvaluatedModel, open_model
from pcd_hub.evaluate.progress import progress
from pcd_hub.evaluate.results import data_sha256
from pcd_hub.train.batches import num_workers, plan_batches, resolve_run, shard
from pcd_hub.train.configs.command_line import parse, run_main
from pcd_hub.train.configs.detection import DETECT, DetectConfig
from pcd_hub.train.detection.batches import (
    Example,
    Labels,
    coco_results,
    detection_batches,
    move_to_device,
    read_images,
)
from pcd_hub.train.detection.detectors import build_detector
from pcd_hub.train.detection.figures import save_detections
from pcd_hub.train.detection.precise_bn import recompute_batch_norm_statistics
from pcd_hub.train.detection.schedule import DetectionSchedule, scaled_schedule
from pcd_hub.train.detection.scores import (
    PROTOCOL_VERSION,
    dataset_name,
    protocol,
    sample_images,
    score_detections,
)
from pcd_hub.train.detection.splits import (
    read_splits,
    resolve_format,
    survey_labels,
    survey_splits,
    use_masks,
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
from pcd_hub.weights.record import named_share


@dataclass(kw_only=True)
class Detection:
    """State of a run: one backbone at one seed."""

    config: DetectConfig
    accelerator: Accelerator
    folder: RunFolder
    schedule: DetectionSchedule
    plan: BatchPlan
    train_split: CocoSplit
    val_split: CocoSplit
    data_sha256: str
    """sha256 of the fingerprints of both splits, before images to train on are drawn."""
    labels: Labels
    masks: bool
    backbone: EvaluatedModel
    detector: nn.Module
    """The detector, not wrapped by the Accelerator."""

    @property
    def loading(self) -> dict[str, Any]:
        """Return the options for reading images."""
        return {
            "num_workers": self.config.data.num_workers,
            "pin_memory": self.accelerator.device.type == "cuda",
        }

    def open_batches(self, plan: BatchPlan, _: object = None) -> Iterator[list[Example]]:
        """Open this process's batches, from ``plan.start_step`` on."""
        return detection_batches(
            self.train_split.with_objects(),
            self.labels,
            plan,
            masks=self.masks,
            by_orientation=self.config.data.group_by_orientation,
            **self.loading,
        )

    def losses(self, detector: nn.Module, examples: list[Example]) -> dict[str, Tensor]:
        """Compute the losses of torchvision's detectors, by name."""
        images, targets = move_to_device(examples, self.accelerator.device)
        with self.accelerator.autocast():
            return detector(images, targets)


def main(arguments: list[str]) -> dict[str, Any] | None:
    """Parse the command line, train, and score the detector on the held-out images.

    With ``--data.check``, only print and return a survey of the labels.
    """
    config_name, config = parse(DETECT, "small", arguments)
    accelerator = start_accelerator(trackers=config.run.trackers)
    if config.data.check:
        return print_survey(accelerator, lambda: survey_labels(config.data, decode_all=True))
    detection = prepare(accelerator, config, config_name)
    train(detection)
    command = shlex.join(["python", "-m", "pcd_hub.train.detection.detect", *arguments])
    with finishing(detection.folder.path):
        take_precise_statistics(detection)
        predictions = detect_objects(detection)
        finish(accelerator)
        if accelerator.is_main_process:
            save_result(detection, predictions, command=command)
            detection.folder.end_trackers()
    return None


def train(detection: Detection) -> None:
    """Train backbone and detector on the sum of torchvision's losses."""
    config, accelerator, detector = detection.config, detection.accelerator, detection.detector
    wrapped, optimizer = accelerator.prepare(detector, build_sgd(detector, config.optim))
    run = TrainingRun(
        accelerator=accelerator,
        folder=detection.folder,
        plan=detection.plan,
        open_batches=detection.open_batches,
        network=detector,
        optimizer=optimizer,
        state={"network": detector, "optimizer": optimizer},
        learning_rate=detection.schedule.learning_rate,
        lr_option="--optim.lr",
    )
    # The network draws random numbers for dropout and the sampling of regions.
    torch.manual_seed(config.run.seed + accelerator.process_index)
    wrapped.train()
    for _, (examples,) in run.steps():
        losses = detection.losses(wrapped, examples)
        loss = torch.stack(list(losses.values())).sum()
        accelerator.backward(loss)
        norm = optimizer_step(wrapped, optimizer, accelerator)
        run.end_step(loss, norm, metrics=losses)
    broadcast_buffers(detector)


def prepare(accelerator: Accelerator, config: DetectConfig, config_name: str) -> Detection:
    """Build everything; invalid settings raise before the output folder is created."""
    schedule = scaled_schedule(config.optim, max_steps=config.run.max_steps)
    requested, data = config, replace(config.data, format=resolve_format(config.data))
    config = replace(config, data=data)
    train_split, val_split = read_splits(data, read_masks=config.detector.masks != "no")
    masks = use_masks(config.detector.masks, train_split, val_split)
    warn_of_labels(
        accelerator, lambda: survey_splits(data, train_split, val_split, decode_all=False)
    )
    workers = num_workers(data.num_workers, accelerator.device)
    on_main_process(accelerator, lambda: check_images(val_split, workers))
    data_hash = data_sha256(train_split.fingerprint(), val_split.fingerprint())
    train_split = coco_subset(train_split, share=config.data.train_share, seed=config.run.seed)
    num_images = len(train_split.with_objects())
    plan = plan_batches(
        accelerator,
        global_batch_size=config.optim.global_batch_size,
        total_steps=schedule.steps,
        seed=config.run.seed,
        num_images=num_images,
        images=f"{train_split.file} has {num_images} pictures with objects",
    )
    config = resolve_run(config, plan, accelerator.device)
    config = replace(config, detector=replace(config.detector, masks="yes" if masks else "no"))
    backbone = open_model(config.model, seed=config.run.seed, features_only=True)
    torch.manual_seed(config.run.seed)  # the same new layers on every backbone of these widths
    labels = Labels(train_split.categories)
    detector: nn.Module = build_detector(
        backbone, config.detector, num_classes=len(labels.category_ids), masks=masks
    )
    if config.detector.norm == "sync":
        detector = with_sync_batch_norm(detector, accelerator, required_by="--detector.norm sync")
    check_places(accelerator, detector, run=config.run, stored_as=None)
    folder = RunFolder.open(
        accelerator,
        config,
        requested=requested,
        default_name=config_name,
        inputs=labelled_inputs(backbone, train_split, val_split),
    )
    return Detection(
        config=config,
        accelerator=accelerator,
        folder=folder,
        schedule=schedule,
        plan=plan,
        train_split=train_split,
        val_split=val_split,
        data_sha256=data_hash,
        labels=labels,
        masks=masks,
        backbone=backbone,
        detector=detector,
    )


def check_images(test_split: CocoSplit, workers: int) -> None:
    """Read every test image: one that is broken must not end a finished training.

    Args:
        test_split: The test images.
        workers: Processes that read images; 0 for none.

    Raises:
        DataError: If one cannot be read.
    """
    for _ in read_images(test_split.images, num_workers=workers):
        pass


def take_precise_statistics(detection: Detection) -> None:
    """Compute batch norm's statistics (PreciseBN) on the batches after the last step."""
    plan = detection.plan
    end = plan.total_steps + detection.config.detector.precise_bn_batches
    if end == plan.total_steps or detection.config.detector.norm == "frozen":
        return
    # Image sizes and regions are drawn; a finished run that is resumed must draw the same.
    torch.manual_seed(plan.seed + detection.accelerator.process_index)
    batches = detection.open_batches(replace(plan, start_step=plan.total_steps, total_steps=end))
    recompute_batch_norm_statistics(
        detection.detector, batches, detection.losses, detection.accelerator
    )


@torch.no_grad()
def detect_objects(detection: Detection) -> list[dict[str, Any]]:
    """Detect objects in every held-out image, in COCO's results format.

    Each image is processed by exactly one process, and is a batch of its own: no other image's size
    changes its padding, so the results do not depend on the number of processes.
    """
    accelerator, detector = detection.accelerator, detection.detector.eval()
    images = detection.val_split.images
    indices = shard(len(images), accelerator.process_index, accelerator.num_processes)
    loaded = read_images([images[index] for index in indices], **detection.loading)
    results: list[tuple[int, list[dict[str, Any]]]] = []
    pairs = zip(indices, loaded, strict=True)
    hidden = not accelerator.is_main_process
    for index, image in progress(pairs, "test images", total=len(indices), disable=hidden):
        with accelerator.autocast():
            (output,) = detector([image.to(accelerator.device, non_blocking=True) / 255])
        results.append((index, coco_results(images[index], output, detection.labels)))
    return one_per_image(gather_object(results), len(images))


def one_per_image(
    gathered: list[tuple[int, list[dict[str, Any]]]], count: int
) -> list[dict[str, Any]]:
    """Sort the results by image, and assert that every image occurs exactly once."""
    assert sorted(index for index, _ in gathered) == list(range(count))
    return [each for _, results in sorted(gathered, key=lambda pair: pair[0]) for each in results]


def save_result(detection: Detection, predictions: list[dict[str, Any]], *, command: str) -> None:
    """Save the detections (a COCO results file), their scores and a picture."""
    config, folder, split = detection.config, detection.folder, detection.val_split
    (folder.path / "detections.json").write_text(json.dumps(predictions) + "\n")
    scores, details = score_detections(
        split, predictions, masks=detection.masks, voc=config.data.voc_scores
    )
    save_evaluation(
        scores,
        task="object detection" + " and instance segmentation" * detection.masks,
        dataset=named_share(dataset_name(config.data), config.data.train_share),
        protocol=protocol(
            config,
            detection.schedule,
            masks=detection.masks,
            num_training_images=len(detection.train_split.with_objects()),
            is_test_trained_on=not {image.path for image in split.images}.isdisjoint(
                image.path for image in detection.train_split.images
            ),
            num_processes=detection.accelerator.num_processes,
            mixed_precision=str(detection.accelerator.mixed_precision),
        ),
        protocol_version=PROTOCOL_VERSION,
        command=command,
        num_images=len(split.images),
        data_sha256=detection.data_sha256,
        seed=config.run.seed,
        evaluated=detection.backbone,
        folder=folder,
        details=details,
    )
    path = folder.path / "pictures" / "detections.png"
    save_detections(path, sample_images(split), predictions, split.categories)


if __name__ == "__main__":
    run_main(main)
