"""Options of ``pcd-hub worth``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.command_line import override
from pcd_hub.train.configs.fields import Bounds, Count

Percent = Annotated[float, Bounds(float, 0, 100, above=True)]

SET_BY_WORTH = frozenset(
    {"data.source", "data.train_share"}
    | {"run.seed", "run.output_dir", "run.resume", "run.max_steps", "run.accept_changed_data"}
)
"""Fields of the fine-tuning that its options must not set."""

DESCRIPTION = """\
Find out whether a distilled backbone is worth it on your labelled data.

Every model is fine-tuned on drawn shares of the training labels, with the same images, steps and
seeds, and scored on the test split. The table gives the difference from the first model, paired by
seed, with its 95 % interval; one sentence for each other model gives the verdict. Test images that
are among the images of the distillation are refused.

DATA: images/SPLIT, masks/SPLIT and classes.json; ade20k:DIR, voc:DIR or cityscapes:DIR
      -> fine-tuned segmentation (FCN), mean IoU
      labels of COCO, YOLO, Pascal VOC, LabelMe or CVAT (docs/labels.md)
      -> Faster R-CNN, or Mask R-CNN if there are outlines, box AP

The same command continues after an interruption: finished fine-tunings are not repeated.
Options of the fine-tuning with a dot in their name are passed on: --data.crop-size 256 256,
--optim.global-batch-size 16, --data.test-split test (recipes/finetune_seg.py, recipes/detect.py).

Examples:
  pcd-hub worth facades --models random:resnet18 resnet18.pcd
  pcd-hub worth cells --models random:resnet18 runs/own_images --shares 10 100 --budget 600
  pcd-hub worth cells --models resnet18.a1_in1k resnet18.pcd --distilled-on photos

--json prints {data, task, dataset, protocol, metric, baseline, models, seeds, shares, verdicts,
rules, checks, folder}."""


@dataclass(frozen=True, kw_only=True)
class WorthConfig:
    """Compare starts of fine-tuning on shares of the labels."""

    data: Annotated[str, tyro.conf.Positional] = ""
    """Labelled images, as above."""
    models: tuple[str, ...] = ()
    """Two or more starts; the others are compared with the first. The
    folder of a run, resnet18.pcd, random:ARCH, teacher:SOURCE,
    local-dir:DIR, hf-hub:ORG/NAME, or any timm model name."""
    shares: tuple[Percent, ...] = (10.0, 30.0, 100.0)
    """Shares of the training labels in percent; at one seed a smaller share
    is part of a larger one."""
    seeds: Count = 3
    """Number of seeds, 0, 1, 2 ... Each draws other labels, other new
    layers and other random weights, the same for all models."""
    budget: Count | None = None
    """Training steps of each fine-tuning, at every share. None: as the
    recipe's configuration says (small: segmentation 150, detection 300)."""
    task: Literal["auto", "segmentation", "detection"] = "auto"
    """What to fine-tune. auto: segmentation if there are masks as images, otherwise detection."""
    recipe_config: str = "small"
    """Configuration of the fine-tuning: a name, as voc_r18_fcn, or a YAML file."""
    distilled_on: tuple[str, ...] = ()
    """Images of the distillation, to look for test images among them.
    Default: the folders that the records of the models name."""
    output_dir: Path | None = None
    """Folder of the results. None: runs/worth."""
    retry_failed: bool = False
    """Run again what has failed; otherwise it stays failed."""


def parse_worth(arguments: list[str]) -> tuple[WorthConfig, list[str]]:
    """Return the options, and those of the fine-tuning, which have a dot in their name.

    Raises:
        ConfigError: If an option is wrong, no data is named, or there are too few models or shares.
    """
    own: list[str] = []
    passed_on: list[str] = []
    current = own
    for argument in arguments:
        if argument.startswith("--"):
            current = passed_on if "." in argument.partition("=")[0] else own
        current.append(argument)
    config = override(WorthConfig(), own, description=DESCRIPTION)
    if not config.data:
        raise ConfigError("no labelled images: expected pcd-hub worth DATA --models START OTHER")
    if len(config.models) < 2:
        raise ConfigError(
            f"--models {' '.join(config.models)}".rstrip()
            + ": expected two or more, the start to compare with first: random:resnet18 "
            "resnet18.pcd"
        )
    if not config.shares or len(set(config.shares)) < len(config.shares):
        shares = " ".join(f"{share:g}" for share in config.shares)
        raise ConfigError(f"--shares {shares}: expected at least one, and none twice")
    return config, passed_on
