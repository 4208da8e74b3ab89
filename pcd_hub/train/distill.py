r"""PCD, pixel-wise contrastive distillation (arXiv:2211.00218): frozen teacher, small student.

No labels are needed. Two ways to start:

    python recipes/distill.py              # config quickstart: offline, CPU, minutes
    accelerate launch recipes/distill.py pcd_r18 \
        --teacher.source mocov3_r50:r-50-1000ep.pth.tar --data.source IMAGES

Reading order: this file -> pcd_hub/method/distiller.py -> pcd_hub/method/loss.py. Results:
recipes/README.md.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import logging
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from pcd_hub.data.loader import Batch
from pcd_hub.data.sources import ImageSource, ImageStream
from pcd_hub.errors import ConfigError, WeightError
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.evaluate.scene_probe import scene_mosaics
from pcd_hub.method.distiller import Distiller, PixelLoss, freeze_unreached
from pcd_hub.method.heads import STUDENT_HEADS, HeadLayout, student_head
from pcd_hub.method.loss import cosine_smooth_l1, pixel_info_nce, similarity_kl
from pcd_hub.method.moments import ChannelMoments
from pcd_hub.method.queue import KeyQueue
from pcd_hub.models.entries import STOCK_ARCHITECTURES, entry_cfg
from pcd_hub.models.grid import PixelGrid, pixel_grid
from pcd_hub.models.teachers import Teacher, load_matched_teacher
from pcd_hub.report.curves import save_training_curve
from pcd_hub.report.features import save_pca
from pcd_hub.report.scene_probe import probe_backbones
from pcd_hub.train.collapse_monitor import CollapseMonitor
from pcd_hub.train.configs.command_line import parse, run
from pcd_hub.train.configs.distill import DISTILL, DistillConfig, PixelMethodConfig
from pcd_hub.train.launch import finish, start_accelerator
from pcd_hub.train.loop import (
    Normalise,
    TakeStep,
    Training,
    build_backbone,
    build_optimizer,
    data_facts,
    memory_format,
    open_training_source,
    plan_batches,
    steps_per_epoch,
    train,
    update,
    with_sync_batch_norm,
)
from pcd_hub.train.run_folder.folder import RunFolder, provenance
from pcd_hub.train.run_folder.preflight import check_places, finishing
from pcd_hub.train.speed import (
    Compilable,
    compile_or_say_why_not,
    compiles_training,
    has_sync_batch_norm,
    pass_through,
    wants_compile,
)
from pcd_hub.weights import store
from pcd_hub.weights.export import check_exportable, check_finite, export_weight
from pcd_hub.weights.manifest import read_manifest, write_json
from pcd_hub.weights.record import WeightRecord

log = logging.getLogger("pcd_hub")

CARD_PICTURES = ("pca.png", "probe.png", "training.png")
"""What goes with the weight; none of them shows a training image."""


def main(arguments: list[str]) -> None:
    """Parse, distil, keep."""
    config_name, config = parse(DISTILL, "quickstart", arguments)
    weight_name = store.check_name(stored_name(config))
    if weight_name.partition(".")[0] != config.student.arch:
        raise ConfigError(
            f"--run.name {weight_name} names another architecture than --student.arch "
            f"{config.student.arch}; use {config.student.arch}.pcd_WHAT"
        )
    accelerator = start_accelerator(
        trackers=config.run.trackers,
        speed=config.speed,
        static_graph=config.optim.accumulation_steps == 1,
    )
    distill_and_keep(accelerator, config, config_name, weight_name)


def stored_name(config: DistillConfig) -> str:
    """The weight's name in the store."""
    return config.run.name or f"{config.student.arch}.pcd"


@dataclasses.dataclass(kw_only=True)
class Distillation:
    """A run, ready to start or finished."""

    config: DistillConfig
    config_name: str
    training: Training
    teacher: Teacher
    student: nn.Module
    random_start: nn.Module
    untrained: tuple[str, ...]


def distill_and_keep(
    accelerator: Accelerator, config: DistillConfig, config_name: str, weight_name: str
) -> None:
    """Train; then probe, record, export and store what came of it."""
    finished = distill(accelerator, config, config_name)
    with finishing(finished.training.folder.path):
        finish(accelerator)
        if accelerator.is_main_process:
            with torch.compiler.set_stance("force_eager"):  # other shapes, a few times each
                keep(finished, weight_name)
            finished.training.folder.end_trackers()


def distill(accelerator: Accelerator, config: DistillConfig, config_name: str) -> Distillation:
    """Prepare and train."""
    prepared, take_step = prepare(accelerator, config, config_name)
    log.info(
        "%s -> %s: %d steps into %s",
        config.teacher.source,
        config.student.arch,
        prepared.training.plan.total_steps,
        prepared.training.folder.path,
    )
    train(prepared.training, take_step)
    return prepared


def prepare(
    accelerator: Accelerator, config: DistillConfig, config_name: str
) -> tuple[Distillation, TakeStep]:
    """Everything that can be wrong is found before the output folder is made."""
    size, method = config.data.image_size, config.method
    torch.manual_seed(config.run.seed)
    source = open_training_source(config.data, accelerator)
    plan = plan_batches(source, config.optim, config.run, accelerator)
    student = build_backbone(config.student.arch, image_size=size)
    random_start = copy.deepcopy(student.model)
    check_places(
        accelerator,
        random_start,
        output_dir=config.run.output_dir,
        stored_as=stored_name(config) if config.run.store else None,
    )
    check_exportable(random_start, config.student.arch, image_size=size)
    unreached = freeze_unreached(student, image_size=size)
    teacher = _load_teacher(config, student)
    head = student_head(student.num_channels, _head_layout(config, teacher))
    distiller = Distiller(
        student, head, loss=_pixel_loss(method), pooled=method.targets == "pooled"
    )
    queue, moments = _beside_the_teacher(config, source, teacher)
    beside = {name: part for name, part in (("queue", queue), ("moments", moments)) if part}
    folder = RunFolder.open(
        accelerator,
        config,
        default_name=config_name,
        inputs={"data": source.fingerprint(), "teacher": f"sha256 {teacher.facts.sha256}"},
    )

    # The student and its head alone have gradients, hence they alone are wrapped.
    device, channels_last = accelerator.device, config.speed.channels_last
    layout = memory_format(channels_last=channels_last)
    distiller = cast("Distiller", with_sync_batch_norm(distiller, config.optim, accelerator))
    distiller.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    teacher.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    for part in beside.values():
        part.to(device)
    normalise = Normalise(config.student.arch, device, channels_last=channels_last)
    if wants_compile(config.speed, device, steps=plan.total_steps):
        _compile(
            teacher, distiller, queue, normalise.example(2 * plan.batch_size, size), accelerator
        )
    wrapped, optimizer = accelerator.prepare(
        distiller, build_optimizer(distiller, config.optim, config.speed)
    )
    health = CollapseMonitor(
        accelerator.unwrap_model(wrapped), queue, patience=steps_per_epoch(source, plan)
    )
    training = Training(
        accelerator=accelerator,
        folder=folder,
        data=config.data,
        optim=config.optim,
        run=config.run,
        source=source,
        plan=plan,
        network=accelerator.unwrap_model(wrapped),
        optimizer=optimizer,
        state={
            "distiller": accelerator.unwrap_model(wrapped),
            "optimizer": optimizer,
            **beside,
        },
        look=health.look,
    )

    def take_step(parts: list[Batch], step: int) -> tuple[Tensor, Tensor]:
        del step
        losses, keys = [], []
        for number, part in enumerate(parts, start=1):
            # First view of every image, then second view of every image.
            images = normalise.images(part)
            synchronise = (
                contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(wrapped)
            )
            with synchronise:
                with accelerator.autocast():
                    with record_function("teacher"):
                        pixels = teacher(images)
                    keys.append(pixels[: len(part.views)].float().mean((2, 3)))
                    if moments is not None:
                        moments.add(accelerator.gather(ChannelMoments.of(pixels)[None]))  # pyright: ignore[reportArgumentType]
                        pixels = moments.standardise(pixels)
                    negatives = () if queue is None else (queue.keys,)
                    loss = wrapped(normalise(images), _targets(pixels, config), *negatives)
                losses.append(loss / len(parts))
                with record_function("backward"):  # outside autocast, which rounds some gradients
                    accelerator.backward(losses[-1])
        norm = update(wrapped, optimizer, accelerator, config.optim)
        if queue is not None:
            for key in keys:
                queue.push(accelerator.gather(key))  # pyright: ignore[reportArgumentType]
        return torch.stack(losses).detach().sum(), norm

    wrapped.train()
    return (
        Distillation(
            config=config,
            config_name=config_name,
            training=training,
            teacher=teacher,
            student=student.model,
            random_start=random_start,
            untrained=tuple(name.removeprefix("model.") for name in unreached),
        ),
        take_step,
    )


def _load_teacher(config: DistillConfig, student: PixelGrid) -> Teacher:
    """Load the teacher, matched to the student's grid, for the loss that is asked for."""
    teacher = load_matched_teacher(
        config.teacher.source,
        student,
        image_size=config.data.image_size,
        teacher_image_size=config.teacher.image_size,
        keep_last_norm=config.teacher.keep_last_norm,
        fold_batch_norms=config.teacher.fold_batch_norms,
    )
    _check_similarities(config, teacher)
    return teacher


def _compile(
    teacher: Teacher,
    distiller: Distiller,
    queue: KeyQueue | None,
    images: Tensor,
    accelerator: Accelerator,
) -> None:
    """The teacher; on GPUs the student too, which on CPUs did not get faster by it."""
    parts: dict[str, Compilable] = {"teacher": teacher}
    if compiles_training(images.device) and not has_sync_batch_norm("student", distiller):
        parts |= {"student": distiller.student, "head": distiller.head}

    def one_pass() -> None:
        with accelerator.autocast():
            pixels = teacher(images)
        if "student" in parts:
            negatives = () if queue is None else (queue.keys,)
            pass_through(distiller, images, pixels, *negatives, accelerator=accelerator)

    compile_or_say_why_not(parts, one_pass, accelerator)


def _beside_the_teacher(
    config: DistillConfig, source: ImageSource | ImageStream, teacher: Teacher
) -> tuple[KeyQueue | None, ChannelMoments | None]:
    """What the loss needs beside the teacher: negatives to contrast with, or each channel's scale.

    Outside the wrapped model, and in the checkpoint.
    """
    match config.method.loss:
        case "pixel_info_nce":
            length = _queue_length(config, source)
            return KeyQueue(length, teacher.num_channels, seed=config.run.seed), None
        case "cosine_smooth_l1":
            return None, ChannelMoments(teacher.num_channels)
        case "similarity_kl":
            return None, None


def _pixel_loss(method: PixelMethodConfig) -> PixelLoss:
    given = method.temperature
    match method.loss:
        case "pixel_info_nce":
            return functools.partial(pixel_info_nce, temperature=0.2 if given is None else given)
        case "similarity_kl":
            return functools.partial(similarity_kl, temperature=0.07 if given is None else given)
        case "cosine_smooth_l1":
            return cosine_smooth_l1


def _check_similarities(config: DistillConfig, teacher: Teacher) -> None:
    if config.method.loss != "similarity_kl":
        return
    height, width = teacher.grid_size(config.data.image_size)
    if config.method.targets == "pooled" or height * width < 2:
        raise ConfigError(
            f"--method.loss similarity_kl compares the pixels of an image; with --method.targets "
            f"{config.method.targets} on a {height} x {width} grid there is one. "
            "Use pixels and a larger --data.image-size"
        )


def _targets(pixels: Tensor, config: DistillConfig) -> Tensor:
    """What the student's pixels are held against.

    The same view's, or the other view's at the same grid place.
    """
    return pixels.roll(len(pixels) // 2, 0) if config.method.views == "cross" else pixels


def _head_layout(config: DistillConfig, teacher: Teacher) -> HeadLayout:
    """The student head's layout, with the teacher's output width and the hidden width asked for."""
    layout = STUDENT_HEADS[config.method.head]
    mlps = tuple(
        (*(config.method.head_width or width for width in hidden), teacher.num_channels)
        for *hidden, _ in layout.mlps
    )
    return dataclasses.replace(layout, mlps=mlps)


def _queue_length(config: DistillConfig, source: ImageSource | ImageStream) -> int:
    length = config.method.queue_length
    longest = len(source) // 2 if isinstance(source, ImageSource) else length
    if length > longest:
        log.warning(
            "queue of %d keys capped at %d, half the data set, or an image would meet itself",
            length,
            longest,
        )
    return max(1, min(length, longest))


def keep(finished: Distillation, weight_name: str) -> None:
    """Probe, record, export, store; and say how to load it."""
    config, training = finished.config, finished.training
    folder = training.folder.path
    pictures = folder / "pictures"
    state = {key: value.cpu() for key, value in finished.student.state_dict().items()}
    check_finite(state)
    metrics = _probe(finished, pictures / "probe.png") if config.probe_scenes else {}
    _draw_pixels(finished, pictures / "pca.png")
    save_training_curve(pictures / "training.png", folder / "metrics.jsonl")
    export = export_weight(
        state,
        _record(finished, weight_name, metrics),
        _fresh_export(folder),
        image_size=config.data.image_size,
        pictures=[path for path in map(pictures.joinpath, CARD_PICTURES) if path.exists()],
    )
    write_json(folder / "record.json", read_manifest(export)["record"])
    if not config.run.store:
        print(
            f'\ntimm.create_model("local-dir:{export.absolute()}", '
            "pretrained=True, features_only=True)"
        )
        return
    before = add_to_store(weight_name, export)
    if before:
        print(
            f"\n{weight_name} in the store was replaced; the one before is kept for now in {before}"
        )
    print("\nload it anywhere:\n")
    if weight_name in {f"{arch}.pcd" for arch in (*STOCK_ARCHITECTURES, "resnet18_mhsa")}:
        print(
            f'  import pcd_hub, timm; timm.create_model("{weight_name}", '
            "pretrained=True, features_only=True)"
        )
    print(
        f'  timm.create_model("local-dir:{store.home() / weight_name}", '
        "pretrained=True, features_only=True)"
    )


def add_to_store(weight_name: str, export: Path) -> Path | None:
    """Store the weight; return the folder of the one that had its name before.

    Raises:
        WeightError: If the store refuses; the weight is whole in ``export``.
    """
    try:
        before = store.where(weight_name)
        store.add(weight_name, export)
    except WeightError as error:
        raise WeightError(
            f"the weight is finished and lies in {export}, but is not in the store: {error}; "
            f"`pcd-hub add {export} --name {weight_name}` puts it there"
        ) from error
    return before


def _fresh_export(folder: Path) -> Path:
    """``export``, or the next free ``export-2`` ...: a resumed run may finish twice."""
    names = itertools.chain(["export"], (f"export-{number}" for number in itertools.count(2)))
    return next(path for path in map(folder.joinpath, names) if not path.exists())


def _probe(finished: Distillation, picture: Path) -> dict[str, Any]:
    cfg, facts = entry_cfg(finished.config.student.arch), finished.teacher.facts
    backbones = [
        EvaluatedModel(name=name, model=model, mean=normalisation.mean, std=normalisation.std)
        for name, model, normalisation in (
            ("random start", finished.random_start, cfg),
            ("distilled student", finished.student, cfg),
            ("teacher", finished.teacher.grid.model, facts),
        )
    ]
    return {
        "scene_probe": probe_backbones(
            backbones,
            subject="distilled student",
            num_scenes=finished.config.probe_scenes,
            picture=picture,
            command=f"python recipes/distill.py {finished.config_name}, with the configuration of "
            "the record",
        )
    }


@torch.inference_mode()
def _draw_pixels(finished: Distillation, path: Path) -> None:
    """Images, the teacher's pixels and the student's, on generated scenes: no user's image."""
    teacher, cfg = finished.teacher, entry_cfg(finished.config.student.arch)
    device = finished.training.accelerator.device
    teachers_cfg = getattr(teacher.grid.model, "pretrained_cfg", None) or {}
    if cfg.fixed_input_size or teachers_cfg.get("fixed_input_size"):
        images = scene_mosaics(8, tiles=1, size=finished.config.data.image_size)
    else:  # many pixels say more than the few of a training view
        images = scene_mosaics(2, tiles=4)
        teacher.set_sizes(images.shape[-1])
    student = pixel_grid(finished.student, image_size=images.shape[-1])
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (cfg.mean, cfg.std))
    values = images.to(device).float() / 255
    pixels = {
        "teacher": teacher(values).float().cpu(),
        "student": student.eval()((values - mean) / std).float().cpu(),
    }
    save_pca(path, images, pixels)


def _record(finished: Distillation, weight_name: str, metrics: dict[str, Any]) -> WeightRecord:
    config, training = finished.config, finished.training
    return WeightRecord(
        name=weight_name,
        architecture=config.student.arch,
        recipe=f"recipes/distill.py {finished.config_name}",
        config=training.folder.recorded_config(),
        teacher=dataclasses.asdict(finished.teacher.facts),
        data=data_facts(training),
        steps=training.plan.total_steps,
        images_seen=training.plan.total_steps * config.optim.global_batch_size,
        seed=config.run.seed,
        licenses={
            "code": "apache-2.0",
            "weights": "not stated",
            "teacher": finished.teacher.facts.license,
            "data": "apache-2.0" if config.data.source.startswith("scenes:") else "not stated",
        },
        untrained=finished.untrained,
        metrics=metrics,
        **provenance(training.accelerator, training.folder),
    )


if __name__ == "__main__":
    run(main)
