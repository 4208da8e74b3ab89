r"""Linear classification as MoCo evaluates on ImageNet: SGD and crops, on a frozen backbone.

One run is one backbone at one seed, in the folder with evaluation.json:

    python recipes/linear_cls.py --data.source DIR --model resnet18.pcd          # small, a CPU
    accelerate launch --multi_gpu --num_processes 8 recipes/linear_cls.py imagenet_mocov3 \
        --data.source IMAGENET --model resnet18.pcd

DIR holds ``SPLIT/CLASS/``. The second has not been run, nor has imagenet_mocov2. knn.py fits the
same layer in one go on vectors that are computed once, without augmentation: minutes instead of
hours, another protocol, other numbers.

``--run.resume`` goes on from the last checkpoint, or scores a finished run again; ``compare.py``
joins models and seeds. Reading order: this file -> finetuning.py -> pixels.py.
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
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from pcd_hub.data.labelled.classification import ClassifiedSet
from pcd_hub.data.loader import BatchPlan, StepSampler
from pcd_hub.data.reading import read_batches
from pcd_hub.data.views import ViewPolicy, draw_view, render_view_with_pillow
from pcd_hub.evaluate.feature_maps import Pixels, all_maps, pixels_of
from pcd_hub.evaluate.models import EvaluatedModel, open_model
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train.configs.command_line import parse, run
from pcd_hub.train.configs.linear_classification import (
    LINEAR_CLS,
    EpochSchedule,
    LinearClsConfig,
    epoch_schedule,
    protocol,
)
from pcd_hub.train.finetuning import inputs_of, num_workers, plan_batches, shard, train
from pcd_hub.train.labelled_splits import open_labelled
from pcd_hub.train.launch import finish, start_accelerator
from pcd_hub.train.run_folder.folder import RunFolder, provenance
from pcd_hub.train.run_folder.preflight import check_places, finishing
from pcd_hub.train.run_folder.resume import protocol_note


def main(arguments: list[str]) -> None:
    """Everything that can be wrong is found before the output folder is made; then train, score."""
    config_name, config = parse(LINEAR_CLS, "small", arguments)
    accelerator = start_accelerator(trackers=config.run.trackers)
    train_set, test_set = open_labelled(config.data)
    schedule = epoch_schedule(
        config.optim, num_images=len(train_set), max_steps=config.run.max_steps
    )
    plan = plan_batches(
        schedule,
        config.run,
        accelerator,
        global_batch_size=config.optim.global_batch_size,
        num_images=len(train_set),
        images=f"{train_set.name} has {len(train_set)} images",
    )
    size = config.data.image_size
    under_test = open_model(config.model, image_size=size, seed=config.run.seed)
    pixels = pixels_of(under_test, size, device=accelerator.device)
    with torch.no_grad():
        width = pixels(torch.zeros(1, 3, size, size, device=accelerator.device)).shape[1]
    layer = linear_layer(width, len(train_set.classes), seed=config.run.seed)
    check_places(accelerator, layer, output_dir=config.run.output_dir, stored_as=None)
    linear = LinearEvaluation(
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
        policy=crop_policy(config),
        train_set=train_set,
        test_set=test_set,
        under_test=under_test,
        pixels=pixels,
        layer=layer,
    )
    train_layer(linear)
    command = shlex.join(["python", "recipes/linear_cls.py", *arguments])
    with finishing(linear.folder.path):
        right = count_right(linear)
        finish(accelerator)
        if accelerator.is_main_process:
            keep(linear, right, command=command)
            linear.folder.end_trackers()


@dataclass(kw_only=True)
class LinearEvaluation:
    """One backbone's run."""

    config: LinearClsConfig
    accelerator: Accelerator
    folder: RunFolder
    schedule: EpochSchedule
    plan: BatchPlan
    policy: ViewPolicy
    train_set: ClassifiedSet
    test_set: ClassifiedSet
    under_test: EvaluatedModel
    pixels: Pixels
    layer: nn.Module
    """All that is trained."""


@dataclass(kw_only=True)
class Crops:
    """What one process sees in one step."""

    images: UInt8[Tensor, "b 3 size size"]
    labels: Int64[Tensor, " b"]

    def pin_memory(self) -> "Crops":
        """Called by the DataLoader's pinning thread."""
        return Crops(images=self.images.pin_memory(), labels=self.labels.pin_memory())


def crop_policy(config: LinearClsConfig) -> ViewPolicy:
    """Random resized crops, mirrored by half; nothing else."""
    return ViewPolicy(
        crop_area=(config.data.min_crop_area, 1.0),
        jitter_probability=0.0,
        gray_probability=0.0,
        blur_probability=0.0,
    )


def linear_layer(width: int, num_classes: int, *, seed: int) -> nn.Linear:
    """Weights of deviation 0.01 and no bias, as MoCo's."""
    layer = nn.Linear(width, num_classes)
    nn.init.normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer


def train_layer(linear: LinearEvaluation) -> None:
    """With cross-entropy, on the frozen backbone's pooled vectors; the loop is in finetuning.py."""
    config, accelerator = linear.config, linear.accelerator
    optimizer = torch.optim.SGD(
        linear.layer.parameters(),
        lr=0.0,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
    )
    wrapped, optimizer = accelerator.prepare(linear.layer, optimizer)
    linear.layer = accelerator.unwrap_model(wrapped)

    def losses_of(layer: nn.Module, crops: Crops) -> dict[str, Tensor]:
        images, labels = (
            part.to(accelerator.device, non_blocking=True) for part in (crops.images, crops.labels)
        )
        with torch.no_grad():
            vectors = linear.pixels(images / 255).mean((2, 3))
        return {"loss": F.cross_entropy(layer(vectors).float(), labels)}

    train(
        wrapped,
        partial(training_crops, linear),
        losses_of,
        optimizer=optimizer,
        schedule=linear.schedule,
        plan=linear.plan,
        run=config.run,
        folder=linear.folder,
        accelerator=accelerator,
    )


def training_crops(linear: LinearEvaluation, plan: BatchPlan) -> Iterator[Crops]:
    """This process's part of every global batch: a pure function of seed and step."""
    data, accelerator = linear.config.data, linear.accelerator
    return read_batches(
        partial(_crop, linear.train_set, linear.policy, data.image_size, plan.seed),
        StepSampler(len(linear.train_set), plan),
        num_workers=num_workers(data.num_workers, accelerator),
        batch_bytes=plan.batch_size * (3 * data.image_size**2 + 8),
        collate=_together,
        pin_memory=accelerator.device.type == "cuda",
    )


def _crop(
    images: ClassifiedSet, policy: ViewPolicy, size: int, seed: int, key: tuple[int, int]
) -> tuple[UInt8[Tensor, "3 size size"], int]:
    """By (epoch, index)."""
    epoch, index = key
    image = images[index]
    rng = np.random.default_rng((seed, epoch, index))
    drawn = draw_view(policy, rng, width=image.width, height=image.height)
    return render_view_with_pillow(image, drawn, size=size), images.labels[index]


def _together(crops: list[tuple[Tensor, int]]) -> Crops:
    return Crops(
        images=torch.stack([image for image, _ in crops]),
        labels=torch.tensor([label for _, label in crops]),
    )


@torch.inference_mode()
def count_right(linear: LinearEvaluation) -> tuple[int, int]:
    """How many test images have their class first, and among the first five.

    Each image is looked at by exactly one process.
    """
    accelerator, data, test_set = linear.accelerator, linear.config.data, linear.test_set
    rows = shard(len(test_set), accelerator.process_index, accelerator.num_processes)
    layer = linear.layer.eval()
    maps = all_maps(
        linear.pixels,
        test_set,
        rows,
        size=data.image_size,
        num_workers=num_workers(data.num_workers, accelerator),
        what="test images",
        disable=not accelerator.is_main_process,
        device=accelerator.device,
    )
    scores = [torch.zeros(0, len(test_set.classes))]  # of a process without an image
    scores += [layer(each.mean((2, 3)).to(accelerator.device)).cpu() for each in maps]
    truth = torch.tensor([test_set.labels[row] for row in rows])
    ranks = torch.cat(scores).topk(min(5, len(test_set.classes)), dim=1).indices
    hits = ranks == truth[:, None]
    found: Any = gather_object([(len(rows), int(hits[:, 0].sum()), int(hits.any(1).sum()))])
    assert sum(count for count, _, _ in found) == len(test_set)
    return sum(first for _, first, _ in found), sum(among for _, _, among in found)


def keep(linear: LinearEvaluation, right: tuple[int, int], *, command: str) -> None:
    """Write and print the scores; top-5 where there are more than five classes."""
    config, train_set, test_set = linear.config, linear.train_set, linear.test_set
    row = {
        name: (100 * count / len(test_set),)
        for name, count in zip(("top-1", "top-5"), right, strict=True)
        if name == "top-1" or len(test_set.classes) > 5
    }
    evaluation = Evaluation(
        task="linear classification",
        dataset=test_set.name,
        protocol=protocol(
            config,
            linear.schedule,
            training_set=f"{train_set.name} ({len(train_set)} images)",
            mixed_precision=str(linear.accelerator.mixed_precision),
        )
        + protocol_note(linear.folder.changes),
        command=command,
        images=len(test_set),
        seeds=(config.run.seed,),
        units=dict.fromkeys(row, "%"),
        scores={},
        details=provenance(linear.accelerator, linear.folder) | linear.folder.recorded_changes(),
    ).with_model(config.model, row, weights_sha256=linear.under_test.weights_sha256, details={})
    evaluation.save(linear.folder.path)
    print(f"\n{evaluation.table()}\n\nin {linear.folder.path}")


if __name__ == "__main__":
    run(main)
