"""From a trained backbone to a folder that plain timm loads: the layout of a Hub repository."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pcd_hub.errors import WeightError
from pcd_hub.models.entries import entry_cfg, size_argument
from pcd_hub.weights.record import WeightRecord
from pcd_hub.weights.store import CONFIG_FILE, WEIGHTS_FILE, write_manifest


def export_weight(
    state: Mapping[str, Tensor], record: WeightRecord, folder: Path, *, image_size: int = 224
) -> Path:
    """Write the export into ``folder``, all or nothing.

    It holds ``model.safetensors``, ``config.json`` and ``pcd_manifest.json``.

    The weights go through a fresh timm model, strictly, and the finished folder is loaded again and
    compared before it gets its name.

    Args:
        state: The backbone's state dict, with timm's own keys and without a head.
        record: Its provenance.
        folder: Must not exist yet.
        image_size: For architectures of a fixed input size, the size they were built with.

    Raises:
        WeightError: If the state does not fit the architecture, holds a value that is not finite,
            or ``folder`` exists.
    """
    if folder.exists():
        raise WeightError(f"{folder} exists already; export into a new folder")
    model = _fresh_model(state, record, image_size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draft.chmod(0o755)
        tensors = {
            # A copy: CoaT keeps one tensor under several names, which safetensors refuses.
            key: value.detach().cpu().contiguous().clone()
            for key, value in model.state_dict().items()
        }
        save_file(tensors, draft / WEIGHTS_FILE, metadata={"format": "pt"})
        # safetensors writes 0600: a shared store could not be read
        (draft / WEIGHTS_FILE).chmod(0o644)
        (draft / CONFIG_FILE).write_text(
            json.dumps(_timm_config(model, record, image_size), indent=2) + "\n"
        )
        write_manifest(draft, record.to_dict())
        _compare(model, draft, image_size)
        os.rename(draft, folder)  # noqa: PTH104 - Path.rename would read as a move into an existing folder
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _fresh_model(state: Mapping[str, Tensor], record: WeightRecord, image_size: int) -> nn.Module:
    size = size_argument(record.architecture, image_size)
    model = timm.create_model(record.architecture, pretrained=False, num_classes=0, **size)
    try:
        model.load_state_dict(
            {
                key: value.float() if value.is_floating_point() else value
                for key, value in state.items()
            },
            strict=True,
        )
    except RuntimeError as error:
        raise WeightError(
            f"the weights do not fit timm's {record.architecture}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    broken = [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightError(
            f"{len(broken)} tensors hold NaN or infinity, first {broken[0]}; the training diverged"
        )
    return model


def _timm_config(model: nn.Module, record: WeightRecord, image_size: int) -> dict[str, Any]:
    """The config.json of timm. Our own facts stand at the root.

    An unknown key in ``pretrained_cfg`` would break every timm.
    """
    cfg = entry_cfg(record.architecture)
    architecture, _, tag = record.name.partition(".")
    ours = {"architecture": architecture, "tag": tag, "custom_load": False}
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": model.num_features,
        "pretrained_cfg": {**cfg.to_dict(remove_source=True), **ours},
        "pcd": record.to_dict(),
    }
    if size := size_argument(record.architecture, image_size):
        config["pretrained_cfg"]["input_size"] = [3, image_size, image_size]
        config["model_args"] = size
    return config


@torch.inference_mode()
def _compare(model: nn.Module, folder: Path, image_size: int) -> None:
    images = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    config = json.loads((folder / CONFIG_FILE).read_text())
    cfg = {**config["pretrained_cfg"], "file": str(folder / WEIGHTS_FILE)}
    arguments: dict[str, Any] = {"num_classes": 0, **config.get("model_args", {})}
    again = timm.create_model(
        config["architecture"], pretrained=True, pretrained_cfg=cfg, **arguments
    )
    expected = model.eval().forward_features(images)  # pyright: ignore[reportCallIssue]
    actual = again.eval().forward_features(images)  # pyright: ignore[reportCallIssue]
    branches = (
        [(expected, actual)] if isinstance(expected, Tensor) else zip(expected, actual, strict=True)
    )
    if not all(torch.equal(one, other) for one, other in branches):
        raise WeightError(
            f"{folder} does not load as the weights that were written; please report this"
        )
