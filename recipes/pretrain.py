"""MoCo v3 (arXiv:2104.02057) for ResNets: a teacher with a trained head, for your own images.

    accelerate launch recipes/pretrain.py mocov3_r50 --data.source IMAGES
    python recipes/distill.py --teacher.source mocov3:resnet50:runs/mocov3_r50/teacher.pth.tar ...

It writes the checkpoint layout of MoCo v3 (``teacher.pth.tar``), which ``mocov3_r50:FILE`` reads
for a ResNet-50 and ``mocov3:ARCH:FILE`` for any timm ResNet; and a folder ``teacher/`` with the
same in half precision as safetensors, which ``local-dir:`` reads. Results: recipes/README.md.
"""

import copy
import json
import logging
from pathlib import Path
from typing import Any, cast

import timm
import torch
from accelerate import Accelerator
from timm.models.resnet import ResNet
from torch import Tensor, nn

from command_line import parse, run
from configs import PRETRAIN, PretrainConfig
from launch import start_accelerator
from pcd_hub.data.loader import Batch
from pcd_hub.errors import ConfigError, StudentError
from pcd_hub.method.moco import MoCoEncoder, MoCoV3, momentum_copy, momentum_update
from pcd_hub.method.schedule import momentum_to_one
from pcd_hub.models.entries import entry_cfg
from pcd_hub.models.grid import PixelGrid
from pcd_hub.models.teachers import save_teacher
from run_folder import RunFolder, provenance
from scene_probe import ProbedBackbone, probe_backbones
from training import (
    Normalise,
    Training,
    build_backbone,
    build_optimizer,
    data_facts,
    open_training_source,
    plan_batches,
    train,
    with_sync_batch_norm,
)

log = logging.getLogger("pcd_hub")


def main(arguments: list[str]) -> None:
    """Parse, pre-train, keep."""
    config_name, config = parse(PRETRAIN, "mocov3_r50", arguments)
    accelerator = start_accelerator(trackers=config.run.trackers)
    pretrain(accelerator, config, config_name)
    accelerator.end_training()


def pretrain(accelerator: Accelerator, config: PretrainConfig, config_name: str) -> None:
    """Everything that can be wrong is found before the output folder is made; then train, keep."""
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
            "MoCo v3 contrasts within a batch, so parts are not the whole; use 1 and more processes"
        )
    random_start = copy.deepcopy(pixels.model)
    width, dim = config.method.head_width, config.method.dim
    encoder = MoCoEncoder(pixels, pixels.num_channels, hidden_width=width, dim=dim)
    moco = MoCoV3(encoder, hidden_width=width, dim=dim, temperature=config.method.temperature)
    slow = with_sync_batch_norm(momentum_copy(encoder), config.run, accelerator)
    folder = RunFolder.open(accelerator, config, default_name=config_name)

    moco = with_sync_batch_norm(moco, config.run, accelerator).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    wrapped, optimizer = accelerator.prepare(moco, build_optimizer(moco, config.optim))
    moco = accelerator.unwrap_model(wrapped)
    slow.to(accelerator.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    normalise = Normalise(config.encoder.arch, accelerator.device)
    training = Training(
        accelerator=accelerator,
        folder=folder,
        data=config.data,
        optim=config.optim,
        run=config.run,
        source=source,
        plan=plan,
        optimizer=optimizer,
        state={"moco": moco, "momentum_encoder": slow, "optimizer": optimizer},
    )

    def take_step(parts: list[Batch], step: int) -> Tensor:
        (batch,) = parts
        first, second = normalise(normalise.images(batch)).chunk(2)
        momentum = momentum_to_one(step, start=config.method.momentum, total_steps=plan.total_steps)
        with accelerator.autocast():
            with torch.no_grad():
                momentum_update(slow, moco.base_encoder, momentum=momentum)
                keys = slow(first), slow(second)
            loss = wrapped(first, second, *keys)
            accelerator.backward(loss)
        if config.optim.clip_grad_norm:
            accelerator.clip_grad_norm_(wrapped.parameters(), config.optim.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    wrapped.train()
    log.info("MoCo v3 %s: %d steps into %s", config.encoder.arch, plan.total_steps, folder.path)
    train(training, take_step)
    if accelerator.is_main_process:
        _keep(
            training,
            config,
            config_name,
            moco=moco,
            slow=cast("MoCoEncoder", slow),
            random_start=random_start,
        )
    accelerator.wait_for_everyone()


def _keep(
    training: Training,
    config: PretrainConfig,
    config_name: str,
    *,
    moco: MoCoV3,
    slow: MoCoEncoder,
    random_start: nn.Module,
) -> None:
    folder = training.folder.path
    backbone = _plain(cast("PixelGrid", slow.pixels).model, config)
    head = copy.deepcopy(slow.fc).cpu().eval()
    metrics = (
        _probe(config, random_start, backbone, folder / "pictures" / "probe.png")
        if config.probe_scenes
        else {}
    )
    facts = _record(training, config, config_name, metrics)
    checkpoint = folder / "teacher.pth.tar"
    torch.save({"arch": config.encoder.arch, "state_dict": _moco_state(moco, slow)}, checkpoint)
    halves = {key: _half(value) for key, value in backbone.state_dict().items()}
    save_teacher(folder / "teacher", halves, head.half(), facts)
    (folder / "record.json").write_text(json.dumps(facts, indent=2) + "\n")
    layout = "mocov3_r50" if config.encoder.arch == "resnet50" else f"mocov3:{config.encoder.arch}"
    print(f"\npython recipes/distill.py --teacher.source {layout}:{checkpoint}")


def _plain(backbone: nn.Module, config: PretrainConfig) -> nn.Module:
    """A fresh timm model with the trained weights: no SyncBatchNorm, contiguous, on the CPU."""
    fresh = timm.create_model(config.encoder.arch, pretrained=False, num_classes=0)
    fresh.load_state_dict(backbone.state_dict(), strict=True)
    return fresh.eval()


def _moco_state(moco: MoCoV3, slow: MoCoEncoder) -> dict[str, Tensor]:
    """All weights under MoCo v3's own names."""
    named = {
        **{f"base_encoder.{key}": value for key, value in moco.base_encoder.state_dict().items()},
        **{f"momentum_encoder.{key}": value for key, value in slow.state_dict().items()},
        **{f"predictor.{key}": value for key, value in moco.predictor.state_dict().items()},
    }
    return {
        f"module.{key.replace('pixels.model.', '')}": value.cpu().contiguous()
        for key, value in named.items()
    }


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def _probe(
    config: PretrainConfig, random_start: nn.Module, trained: nn.Module, picture: Path
) -> dict[str, Any]:
    cfg = entry_cfg(config.encoder.arch)
    backbones = {
        "random start": ProbedBackbone(model=random_start, mean=cfg.mean, std=cfg.std),
        "pre-trained": ProbedBackbone(model=trained, mean=cfg.mean, std=cfg.std),
    }
    return {
        "scene_probe": probe_backbones(backbones, num_scenes=config.probe_scenes, picture=picture)
    }


def _record(
    training: Training, config: PretrainConfig, config_name: str, metrics: dict[str, Any]
) -> dict[str, Any]:
    cfg, source = entry_cfg(config.encoder.arch), training.source
    on_scenes = config.data.source.startswith("scenes:")
    return {
        "architecture": config.encoder.arch,
        "license": "apache-2.0" if on_scenes else "not stated",
        "mean": list(cfg.mean),
        "std": list(cfg.std),
        "recipe": f"recipes/pretrain.py {config_name}",
        "config": training.folder.config_dict(),
        "data": data_facts(source, config.data),
        "steps": training.plan.total_steps,
        "images_seen": training.plan.total_steps * config.optim.global_batch_size,
        "metrics": metrics,
        **provenance(training.accelerator, training.folder),
    }


if __name__ == "__main__":
    run(main)
