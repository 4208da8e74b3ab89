"""A teacher with a trained head, for your own images: MoCo v3 or SimCLR for timm ResNets.

    accelerate launch recipes/pretrain.py mocov3_r50 --data.source IMAGES
    python recipes/distill.py --teacher.source local-dir:runs/mocov3_r50/teacher ...

It writes a folder ``teacher/``: safetensors in half precision and their record, which
``local-dir:`` reads. MoCo v3 (arXiv:2104.02057) writes its own checkpoint layout as well,
``teacher.pth.tar``: ``mocov3_r50:FILE`` for a ResNet-50, ``mocov3:ARCH:FILE`` for others. SimCLR
(arXiv:2002.05709) is the one for small batches and little time. Results: recipes/README.md.
"""

import copy
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from accelerate import Accelerator
from timm.models.resnet import ResNet
from torch import Tensor, nn

from pcd_hub.data.loader import Batch
from pcd_hub.errors import ConfigError, StudentError
from pcd_hub.evaluate.models import EvaluatedModel
from pcd_hub.method.encoder import ProjectedEncoder
from pcd_hub.method.moco import MoCoV3, momentum_copy, momentum_update
from pcd_hub.method.schedule import momentum_to_one
from pcd_hub.method.simclr import SimCLR
from pcd_hub.models.entries import entry_cfg
from pcd_hub.models.grid import PixelGrid
from pcd_hub.models.teachers import save_teacher
from pcd_hub.models.writing import writing_tensors
from pcd_hub.report.scene_probe import probe_backbones
from pcd_hub.train.configs.command_line import parse, run
from pcd_hub.train.configs.distill import CONTRAST, ContrastConfig
from pcd_hub.train.launch import finish, start_accelerator
from pcd_hub.train.loop import (
    Normalise,
    Training,
    build_backbone,
    build_optimizer,
    data_facts,
    memory_format,
    open_training_source,
    plan_batches,
    train,
    update,
    with_sync_batch_norm,
)
from pcd_hub.train.run_folder.folder import RunFolder, provenance
from pcd_hub.train.run_folder.preflight import check_places, finishing
from pcd_hub.train.speed import (
    compile_or_say_why_not,
    has_sync_batch_norm,
    pass_through,
    wants_compile,
)

log = logging.getLogger("pcd_hub")


def main(arguments: list[str]) -> None:
    """Parse, pre-train, keep."""
    config_name, config = parse(CONTRAST, "mocov3_r50", arguments)
    accelerator = start_accelerator(
        trackers=config.run.trackers, speed=config.speed, static_graph=True
    )
    finished = pretrain(accelerator, config, config_name)
    with finishing(finished.training.folder.path):
        finish(accelerator)
        if accelerator.is_main_process:
            _keep(finished, config, config_name)
            finished.training.folder.end_trackers()


@dataclass(kw_only=True)
class Pretraining:
    """A run that is finished."""

    training: Training
    contrast: MoCoV3 | SimCLR
    momentum_encoder: nn.Module | None
    random_start: nn.Module


def pretrain(accelerator: Accelerator, config: ContrastConfig, config_name: str) -> Pretraining:
    """Everything that can be wrong is found before the output folder is made; then train."""
    torch.manual_seed(config.run.seed)
    source = open_training_source(config.data, accelerator)
    plan = plan_batches(source, config.optim, config.run, accelerator)
    pixels = build_backbone(config.encoder.arch, image_size=config.data.image_size)
    if not isinstance(pixels.model, ResNet):
        raise StudentError(
            f"{config.encoder.arch} is no ResNet; "
            "this recipe trains timm ResNets (resnet50, resnet18 ...)"
        )
    if config.optim.accumulation_steps > 1:
        raise ConfigError(
            f"--optim.accumulation-steps {config.optim.accumulation_steps}: "
            "the contrast is within a batch, so parts are not the whole; use 1 and more processes"
        )
    random_start = copy.deepcopy(pixels.model)
    method = config.method
    width, dim = method.head_width, method.dim
    device, layout = accelerator.device, memory_format(channels_last=config.speed.channels_last)
    encoder = ProjectedEncoder(pixels, pixels.num_channels, hidden_width=width, dim=dim)
    slow = None
    if method.loss == "mocov3":
        contrast = MoCoV3(encoder, hidden_width=width, dim=dim, temperature=method.temperature)
        slow = with_sync_batch_norm(momentum_copy(encoder), config.optim, accelerator)
        slow.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    else:
        contrast = SimCLR(encoder, temperature=method.temperature)
    check_places(accelerator, contrast, output_dir=config.run.output_dir, stored_as=None)
    inputs = {"data": source.fingerprint()}
    folder = RunFolder.open(accelerator, config, default_name=config_name, inputs=inputs)

    contrast = with_sync_batch_norm(contrast, config.optim, accelerator)
    contrast.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    normalise = Normalise(config.encoder.arch, device, channels_last=config.speed.channels_last)
    if wants_compile(config.speed, device, steps=plan.total_steps):
        both = normalise.example(2 * plan.batch_size, config.data.image_size)
        _compile(cast("MoCoV3 | SimCLR", contrast), slow, both, accelerator)
    wrapped, optimizer = accelerator.prepare(
        contrast, build_optimizer(contrast, config.optim, config.speed)
    )
    contrast = cast("MoCoV3 | SimCLR", accelerator.unwrap_model(wrapped))
    training = Training(
        accelerator=accelerator,
        folder=folder,
        data=config.data,
        optim=config.optim,
        run=config.run,
        source=source,
        plan=plan,
        network=contrast,
        optimizer=optimizer,
        state={"contrast": contrast, "optimizer": optimizer}
        | ({} if slow is None else {"momentum_encoder": slow}),
    )

    @torch.no_grad()
    def momentum_keys(first: Tensor, second: Tensor, step: int) -> tuple[Tensor, Tensor]:
        assert slow is not None
        momentum = momentum_to_one(step, start=method.momentum, total_steps=plan.total_steps)
        momentum_update(slow, contrast.base_encoder, momentum=momentum)
        return slow(first), slow(second)

    def take_step(parts: list[Batch], step: int) -> tuple[Tensor, Tensor]:
        (batch,) = parts
        first, second = normalise(normalise.images(batch)).chunk(2)
        with accelerator.autocast():
            keys = momentum_keys(first, second, step) if slow is not None else ()
            loss = wrapped(first, second, *keys)
        accelerator.backward(loss)  # outside autocast, which would round some gradients
        return loss.detach(), update(wrapped, optimizer, accelerator, config.optim)

    wrapped.train()
    log.info(
        "%s %s: %d steps into %s", method.loss, config.encoder.arch, plan.total_steps, folder.path
    )
    train(training, take_step)
    return Pretraining(
        training=training, contrast=contrast, momentum_encoder=slow, random_start=random_start
    )


def _compile(
    contrast: MoCoV3 | SimCLR, slow: nn.Module | None, both: Tensor, accelerator: Accelerator
) -> None:
    """Both encoders; SimCLR's takes both views at once, MoCo v3's one after the other."""
    if has_sync_batch_norm("encoder", contrast.base_encoder):
        return
    parts: dict[str, nn.Module] = {"encoder": contrast.base_encoder}
    if slow is not None:
        parts["momentum encoder"] = slow
    images = both if slow is None else both.chunk(2)[0]

    def one_pass() -> None:
        for encoder in parts.values():
            pass_through(encoder, images, accelerator=accelerator)

    compile_or_say_why_not(parts, one_pass, accelerator)


def _keep(finished: Pretraining, config: ContrastConfig, config_name: str) -> None:
    training, slow, contrast = finished.training, finished.momentum_encoder, finished.contrast
    folder = training.folder.path
    encoder = cast("ProjectedEncoder", contrast.base_encoder if slow is None else slow)
    backbone = _plain(cast("PixelGrid", encoder.pixels).model, config)
    head = copy.deepcopy(encoder.fc).cpu().eval()
    metrics = (
        _probe(
            config, config_name, finished.random_start, backbone, folder / "pictures" / "probe.png"
        )
        if config.probe_scenes
        else {}
    )
    facts = _record(training, config, config_name, metrics)
    halves = {key: _half(value) for key, value in backbone.state_dict().items()}
    save_teacher(folder / "teacher", halves, head.half(), facts)
    (folder / "record.json").write_text(json.dumps(facts, indent=2) + "\n")
    if slow is not None:
        state = {"arch": config.encoder.arch, "state_dict": _moco_state(contrast, slow)}
        file = folder / "teacher.pth.tar"
        with writing_tensors(file):
            torch.save(state, file)
    print(f"\npython recipes/distill.py --teacher.source local-dir:{folder / 'teacher'}")


def _plain(backbone: nn.Module, config: ContrastConfig) -> nn.Module:
    """A fresh timm model with the trained weights: no SyncBatchNorm, contiguous, on the CPU."""
    fresh = timm.create_model(config.encoder.arch, pretrained=False, num_classes=0)
    fresh.load_state_dict(backbone.state_dict(), strict=True)
    return fresh.eval()


def _moco_state(moco: nn.Module, slow: nn.Module) -> dict[str, Tensor]:
    """All weights under MoCo v3's own names."""
    named = {
        **moco.state_dict(),
        **{f"momentum_encoder.{key}": value for key, value in slow.state_dict().items()},
    }
    return {
        f"module.{key.replace('pixels.model.', '')}": value.cpu().contiguous()
        for key, value in named.items()
    }


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def _probe(
    config: ContrastConfig,
    config_name: str,
    random_start: nn.Module,
    trained: nn.Module,
    picture: Path,
) -> dict[str, Any]:
    cfg = entry_cfg(config.encoder.arch)
    backbones = [
        EvaluatedModel(name=name, model=model, mean=cfg.mean, std=cfg.std)
        for name, model in (("random start", random_start), ("pre-trained", trained))
    ]
    return {
        "scene_probe": probe_backbones(
            backbones,
            subject="pre-trained",
            num_scenes=config.probe_scenes,
            picture=picture,
            command=f"python recipes/pretrain.py {config_name}",
        )
    }


def _record(
    training: Training, config: ContrastConfig, config_name: str, metrics: dict[str, Any]
) -> dict[str, Any]:
    cfg = entry_cfg(config.encoder.arch)
    on_scenes = config.data.source.startswith("scenes:")
    return {
        "architecture": config.encoder.arch,
        "license": "apache-2.0" if on_scenes else "not stated",
        "mean": list(cfg.mean),
        "std": list(cfg.std),
        "recipe": f"recipes/pretrain.py {config_name}",
        "config": training.folder.recorded_config(),
        "data": data_facts(training),
        "steps": training.plan.total_steps,
        "images_seen": training.plan.total_steps * config.optim.global_batch_size,
        "metrics": metrics,
        **provenance(training.accelerator, training.folder),
    }


if __name__ == "__main__":
    run(main)
