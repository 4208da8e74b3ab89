"""The recipes that evaluate a row, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pcd_hub.train import linear_classification
from pcd_hub.train.configs.detection import DETECT
from pcd_hub.train.configs.linear_classification import LINEAR_CLS
from pcd_hub.train.configs.probes import KNN, LINEAR_SEG
from pcd_hub.train.configs.segmentation import FINETUNE_SEG
from pcd_hub.train.detection import detect
from pcd_hub.train.detection.splits import read_splits
from pcd_hub.train.frozen import knn, segmentation_probe
from pcd_hub.train.labelled_splits import open_classification_splits, open_segmentation_splits
from pcd_hub.train.segmentation import finetune


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe that scores models on labelled images."""

    main: Callable[[list[str]], object]
    configs: Mapping[str, Any]
    default: str
    """Name of the configuration to start from, if none is given."""
    open_images: Callable[[Any], object]
    """Open the labelled images of ``config.data``; raises if they are missing."""
    trains: bool
    """Whether it trains all layers of one model at one seed, from checkpoints that it can resume.
    Otherwise it scores frozen features at several seeds."""

    @property
    def set_by_lab(self) -> frozenset[str]:
        """Fields that a list of runs must not set."""
        own = (
            ("model", "run.seed", "run.resume")
            if self.trains
            else ("models", "references", "append")
        )
        return frozenset({"run.output_dir", *own})


RECIPES = {
    "linear_seg": Recipe(
        main=segmentation_probe.main,
        configs=LINEAR_SEG,
        default="folder",
        open_images=open_segmentation_splits,
        trains=False,
    ),
    "knn": Recipe(
        main=knn.main,
        configs=KNN,
        default="folder",
        open_images=lambda data: open_classification_splits(data) if data.source else None,
        trains=False,
    ),
    "linear_cls": Recipe(
        main=linear_classification.main,
        configs=LINEAR_CLS,
        default="small",
        open_images=open_classification_splits,
        trains=True,
    ),
    "finetune_seg": Recipe(
        main=finetune.main,
        configs=FINETUNE_SEG,
        default="small",
        open_images=open_segmentation_splits,
        trains=True,
    ),
    "detect": Recipe(
        main=detect.main,
        configs=DETECT,
        default="small",
        open_images=lambda data: read_splits(data, read_masks=False),
        trains=True,
    ),
}
