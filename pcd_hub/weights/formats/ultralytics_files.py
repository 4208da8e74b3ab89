"""Write a detector for ultralytics: its description and the tensors of its backbone."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import torch
from torch import Tensor, nn

from pcd_hub.models.tensor_files import writing_tensors
from pcd_hub.weights.formats.architectures import ULTRALYTICS
from pcd_hub.weights.formats.key_maps import renamed
from pcd_hub.weights.formats.readme import Usage
from pcd_hub.weights.formats.state_files import check_channels, held
from pcd_hub.weights.load import ReadWeight

_DETECTOR = """\
# YOLO11's neck and head on torchvision's {name}; nc becomes the number of classes of the data.
nc: 80
backbone:
  - [-1, 1, TorchVision, [{c5}, {name}, null, True, 2, True]]
  - [0, 1, Index, [{c3}, 6]]  # stride 8
  - [0, 1, Index, [{c4}, 7]]  # 16
  - [0, 1, Index, [{c5}, 8]]  # 32
  - [-1, 1, SPPF, [512, 5]]
head:
  - [-1, 1, nn.Upsample, [null, 2, nearest]]
  - [[-1, 2], 1, Concat, [1]]
  - [-1, 1, C3k2, [256, False]]
  - [-1, 1, nn.Upsample, [null, 2, nearest]]
  - [[-1, 1], 1, Concat, [1]]
  - [-1, 1, C3k2, [128, False]]  # 10: stride 8
  - [-1, 1, Conv, [128, 3, 2]]
  - [[-1, 7], 1, Concat, [1]]
  - [-1, 1, C3k2, [256, False]]  # 13: 16
  - [-1, 1, Conv, [256, 3, 2]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 1, C3k2, [512, True]]  # 16: 32
  - [[10, 13, 16], 1, Detect, [nc]]
"""
_NOTES = (
    (
        "ultralytics gives images from 0 to 1, as RGB, without mean and std: both are in the first "
        "convolution and its batch norm, and no normalisation is to be added. Near the borders the "
        "features differ, as the padding is black instead of the mean."
    ),
    (
        "Training takes the number of classes from the data. `load` is necessary: without it the "
        "backbone is random."
    ),
    "The file is a pickled module of `torch.nn`. ultralytics' licence is AGPL-3.0.",
)


def write_ultralytics(weight: ReadWeight, folder: Path, place: PurePath) -> Usage:
    """Write YOLO11 on a ResNet as a YAML file, and a checkpoint for its backbone.

    ultralytics loads a checkpoint's tensors by name and shape and leaves the others as they are, so
    that the neck and the head need not be in the file.
    """
    found = held(weight, ULTRALYTICS, to="ultralytics")
    check_channels(weight, to="ultralytics", rgb=True)
    name, file = found.options["name"], f"{weight.record.name}.pt"
    c3, c4, c5 = found.options["channels"]
    text = _DETECTOR.format(name=name, c3=c3, c4=c4, c5=c5)
    (folder / f"yolo_{name}.yaml").write_text(text, encoding="utf-8", newline="\n")
    cfg = weight.config["pretrained_cfg"]
    tensors = with_normalisation(weight.tensors, mean=cfg["mean"], std=cfg["std"])
    with writing_tensors(folder / file):
        torch.save({"model": _as_module(renamed(tensors, found.keys))}, folder / file)
    return Usage(
        file=file,
        code=f"""from ultralytics import YOLO
model = YOLO("{place}/yolo_{name}.yaml").load("{place / file}")
model.train(data="data.yaml", epochs=100)""",
        normalised_inside=True,
        notes=_NOTES,
    )


def with_normalisation(
    tensors: Mapping[str, Tensor], *, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """Return a ResNet's tensors with the normalisation in its first convolution and batch norm.

    The network then takes images from 0 to 1. Its features are the same except near the borders,
    where the zeros of the padding are black instead of the mean.
    """
    kernel = tensors["conv1.weight"].double() / torch.tensor(std).double().view(1, -1, 1, 1)
    offset = (kernel.sum((2, 3)) * torch.tensor(mean).double()).sum(1)
    shifted = tensors["bn1.running_mean"].double() + offset
    return {**tensors, "conv1.weight": kernel.float(), "bn1.running_mean": shifted.float()}


def _as_module(state: Mapping[str, Tensor]) -> nn.Module:
    """Return a module of plain ``torch.nn`` classes that has these tensors under these names."""
    root = nn.Module()
    for name, value in state.items():
        *path, leaf = name.split(".")
        place = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.ModuleList() if part == "model" else nn.Module())
            place = place.get_submodule(part)
        place.register_buffer(leaf, value)
    return root
