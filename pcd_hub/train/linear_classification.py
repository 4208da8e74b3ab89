"""Linear classification on a frozen backbone, as MoCo evaluates on ImageNet: SGD on crops.

    python -m pcd_hub.train.linear_classification --data.source DIR --model resnet18.pcd

One run is one backbone at one seed. Protocol, hardware, time and result: recipes/linear_cls.py.
Reading order: this file -> run.py -> evaluate/feature_maps.py.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.utils.data import default_collate

from pcd_hub.data.batch_plan import BatchPlan, StepSampler
from pcd_hub.data.labelled.classification import ClassificationSet
from pcd_hub.data.reading import read_batches
from pcd_hub.data.views import ViewPolicy, draw_view, render_view_with_pillow
from pcd_hub.evaluate.feature_maps import FeatureExtractor, extract_feature_maps, feature_extractor
from pcd_hub.evaluate.models import EvaluatedModel, open_model
from pcd_hub.evaluate.results import data_sha256
from pcd_hub.train.batches import plan_batches, resolve_run, shard
from pcd_hub.train.configs.command_line import parse, run_main
from pcd_hub.train.configs.linear_classification import (
    LINEAR_CLS,
    PROTOCOL_VERSION,
    EpochSchedule,
    LinearClsConfig,
    epoch_schedule,
    protocol,
)
from pcd_hub.train.labelled_splits import open_classification_splits, survey_class_splits
from pcd_hub.train.labels.check import warn_of_labels
from pcd_hub.train.launch import finish, start_accelerator
from pcd_hub.train.optimizers import optimizer_step
from pcd_hub.train.results.evaluation import save_evaluation
from pcd_hub.train.run import TrainingRun
from pcd_hub.train.run_folder.folder import RunFolder
from pcd_hub.train.run_folder.preflight import check_places, finishing
from pcd_hub.train.run_folder.resume import labelled_inputs


@dataclass(kw_only=True)
class LinearEvaluation:
    """State of a run: one backbone at one seed."""

    config: LinearClsConfig
    accelerator: Accelerator
    folder: RunFolder
    schedule: EpochSchedule
    plan: BatchPlan
    policy: ViewPolicy
    train_set: ClassificationSet
    test_set: ClassificationSet
    backbone: EvaluatedModel
    feature_map: FeatureExtractor
    """The frozen backbone with its normalisation."""
    layer: nn.Module
    """The linear layer, the only trained part; not wrapped by the Accelerator."""


def main(arguments: list[str]) -> None:
    """Parse the command line, train the layer, and score it on the test split."""
    config_name, config = parse(LINEAR_CLS, "small", arguments)
    accelerator = start_accelerator(trackers=config.run.trackers)
    linear = prepare(accelerator, config, config_name)
    train(linear)
    command = shlex.join(["python", "-m", "pcd_hub.train.linear_classification", *arguments])
    with finishing(linear.folder.path):
        correct = count_correct(linear)
        finish(accelerator)
        if accelerator.is_main_process:
            save_result(linear, correct, command=command)
            linear.folder.end_trackers()


def train(linear: LinearEvaluation) -> None:
    """Train the layer with cross-entropy on the frozen backbone's pooled features."""
    config, accelerator, layer = linear.config, linear.accelerator, linear.layer
    optimizer = torch.optim.SGD(
        layer.parameters(),
        lr=0.0,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
    )
    wrapped, optimizer = accelerator.prepare(layer, optimizer)
    run = TrainingRun(
        accelerator=accelerator,
        folder=linear.folder,
        plan=linear.plan,
        open_batches=lambda plan, _: training_crops(linear, plan),
        network=layer,
        optimizer=optimizer,
        state={"network": layer, "optimizer": optimizer},
        learning_rate=linear.schedule.learning_rate,
        lr_option="--optim.lr-per-256",
    )
    wrapped.train()
    for _, (crops,) in run.steps():
        images, labels = (each.to(accelerator.device, non_blocking=True) for each in crops)
        with accelerator.autocast():
            with torch.no_grad():
                features = linear.feature_map(images / 255).mean((2, 3))
            loss = F.cross_entropy(wrapped(features).float(), labels)
        accelerator.backward(loss)
        norm = optimizer_step(wrapped, optimizer, accelerator)
        run.end_step(loss, norm)


def prepare(
    accelerator: Accelerator, config: LinearClsConfig, config_name: str
) -> LinearEvaluation:
    """Build everything; invalid settings raise before the output folder is created."""
    train_set, test_set = open_classification_splits(config.data)
    warn_of_labels(accelerator, lambda: survey_class_splits(train_set, test_set))
    schedule = epoch_schedule(
        config.optim, num_images=len(train_set), max_steps=config.run.max_steps
    )
    plan = plan_batches(
        accelerator,
        global_batch_size=config.optim.global_batch_size,
        total_steps=schedule.steps,
        seed=config.run.seed,
        num_images=len(train_set),
        images=f"{train_set.name} has {len(train_set)} images",
    )
    size, device = config.data.image_size, accelerator.device
    requested, config = config, resolve_run(config, plan, device)
    backbone = open_model(config.model, image_size=size, seed=config.run.seed)
    feature_map = feature_extractor(backbone, size, device=device)
    with torch.no_grad():
        num_channels = feature_map(torch.zeros(1, 3, size, size, device=device)).shape[1]
    layer = linear_layer(num_channels, len(train_set.classes), seed=config.run.seed)
    check_places(accelerator, layer, run=config.run, stored_as=None)
    folder = RunFolder.open(
        accelerator,
        config,
        requested=requested,
        default_name=config_name,
        inputs=labelled_inputs(backbone, train_set, test_set),
    )
    return LinearEvaluation(
        config=config,
        accelerator=accelerator,
        folder=folder,
        schedule=schedule,
        plan=plan,
        policy=crop_policy(config),
        train_set=train_set,
        test_set=test_set,
        backbone=backbone,
        feature_map=feature_map,
        layer=layer,
    )


def crop_policy(config: LinearClsConfig) -> ViewPolicy:
    """Return random resized crops with horizontal flips and no other augmentation."""
    return ViewPolicy(
        crop_area=(config.data.min_crop_area, 1.0),
        jitter_probability=0.0,
        gray_probability=0.0,
        blur_probability=0.0,
    )


def linear_layer(width: int, num_classes: int, *, seed: int) -> nn.Linear:
    """Build a layer with MoCo's initialisation: normal weights (std 0.01), bias 0."""
    layer = nn.Linear(width, num_classes)
    nn.init.normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer


def training_crops(linear: LinearEvaluation, plan: BatchPlan) -> Iterator[list[Tensor]]:
    """Open this process's crops and their labels, a pure function of seed and step."""
    data, accelerator = linear.config.data, linear.accelerator
    return read_batches(
        partial(_crop, linear.train_set, linear.policy, data.image_size, plan.seed),
        StepSampler(len(linear.train_set), plan),
        num_workers=data.num_workers or 0,
        batch_bytes=plan.batch_size * (3 * data.image_size**2 + 8),
        collate=default_collate,
        pin_memory=accelerator.device.type == "cuda",
    )


def _crop(
    images: ClassificationSet, policy: ViewPolicy, size: int, seed: int, key: tuple[int, int]
) -> tuple[UInt8[Tensor, "3 size size"], int]:
    """Draw one crop; ``key`` is (epoch, index)."""
    epoch, index = key
    image = images[index]
    rng = np.random.default_rng((seed, epoch, index))
    drawn = draw_view(policy, rng, width=image.width, height=image.height)
    return render_view_with_pillow(image, drawn, size=size), images.labels[index]


@torch.inference_mode()
def count_correct(linear: LinearEvaluation) -> tuple[int, int]:
    """Count the test images whose class is predicted first, and among the first five.

    Each image is scored by exactly one process.
    """
    accelerator, data, test_set = linear.accelerator, linear.config.data, linear.test_set
    rows = shard(len(test_set), accelerator.process_index, accelerator.num_processes)
    layer = linear.layer.eval()
    maps = extract_feature_maps(
        linear.feature_map,
        test_set,
        rows,
        size=data.image_size,
        num_workers=data.num_workers or 0,
        what="test images",
        disable=not accelerator.is_main_process,
        device=accelerator.device,
    )
    scores = [torch.zeros(0, len(test_set.classes))]  # for a process without an image
    scores += [layer(each.mean((2, 3)).to(accelerator.device)).cpu() for each in maps]
    truth = torch.tensor([test_set.labels[row] for row in rows])
    ranks = torch.cat(scores).topk(min(5, len(test_set.classes)), dim=1).indices
    hits = ranks == truth[:, None]
    counts: Any = gather_object([(len(rows), int(hits[:, 0].sum()), int(hits.any(1).sum()))])
    assert sum(count for count, _, _ in counts) == len(test_set)
    return sum(top1 for _, top1, _ in counts), sum(top5 for _, _, top5 in counts)


def save_result(linear: LinearEvaluation, correct: tuple[int, int], *, command: str) -> None:
    """Save the accuracy; top-5 if there are more than five classes."""
    config, train_set, test_set = linear.config, linear.train_set, linear.test_set
    scores = {
        name: 100 * count / len(test_set)
        for name, count in zip(("top-1", "top-5"), correct, strict=True)
        if name == "top-1" or len(test_set.classes) > 5
    }
    save_evaluation(
        scores,
        task="linear classification",
        dataset=test_set.name,
        protocol=protocol(
            config,
            linear.schedule,
            training_set=f"{train_set.name} ({len(train_set)} images)",
            mixed_precision=str(linear.accelerator.mixed_precision),
        ),
        protocol_version=PROTOCOL_VERSION,
        command=command,
        num_images=len(test_set),
        data_sha256=data_sha256(train_set.fingerprint(), test_set.fingerprint()),
        seed=config.run.seed,
        evaluated=linear.backbone,
        folder=linear.folder,
    )


if __name__ == "__main__":
    run_main(main)
