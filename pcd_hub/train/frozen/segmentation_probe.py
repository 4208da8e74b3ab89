"""Command line of the linear segmentation probe (``recipes/linear_seg.py``)."""

import dataclasses
import shlex
from functools import partial
from typing import Any

from PIL import Image

from pcd_hub.data.labelled.segmentation_set import Mask
from pcd_hub.evaluate.models import check_models
from pcd_hub.evaluate.results import FILE, ModelScores
from pcd_hub.evaluate.segmentation_probe import SegmentationProbe
from pcd_hub.report.overlays import save_sample_overlays
from pcd_hub.train.configs.command_line import parse, run_main
from pcd_hub.train.configs.probes import LINEAR_SEG, LinearSegConfig
from pcd_hub.train.frozen.selection import append_scores, select_models
from pcd_hub.train.labelled_splits import (
    open_segmentation_splits,
    survey_mask_splits,
    survey_masks,
)
from pcd_hub.train.labels.check import log_warnings
from pcd_hub.train.launch import quiet_logs
from pcd_hub.train.run_folder.folder import output_folder
from pcd_hub.train.run_folder.provenance import provenance


def main(arguments: list[str]) -> list[dict[str, Any]]:
    """Probe every model, save and print the table, and draw predictions; return the table.

    With ``--data.check``, only print and return a survey of the labels.
    """
    _, config = parse(LINEAR_SEG, "folder", arguments)
    quiet_logs()
    if config.data.check:
        found = survey_masks(config.data)
        print(found.table())
        return [found.as_json()]
    probe = build_probe(config)
    check_models(config.models, config.run.seeds)
    log_warnings(survey_mask_splits(config.data, probe.train, probe.test, decode_all=False))
    table = probe.empty_table(
        config.run.seeds,
        command=shlex.join(["python", "-m", "pcd_hub.train.frozen.segmentation_probe", *arguments]),
        details=provenance(),
    )
    [(table, models)] = select_models(config, [table])
    with output_folder(config.run.output_dir, "linear_seg") as folder:
        predicted = {}
        for name in models:
            scores = probe.score(name, config.run.seeds)
            table = table.with_scores(scores)
            table.save(folder)
            append_scores(config.append, table, scores)
            predicted[name] = partial(_prediction, scores)
            mean_iou, seed = scores.metrics["mean IoU"][0], config.run.seeds[0]
            print(f"{name}: {mean_iou:.1f} % mean IoU, seed {seed}")
        save_sample_overlays(folder / "pictures" / "overlays.png", probe.test, predicted)
        print(f"\n{table.table()}\n\n{folder / FILE}")
        return [{**dataclasses.asdict(table), "folder": str(folder)}]


def build_probe(config: LinearSegConfig) -> SegmentationProbe:
    """Open the labelled set and set up the probe."""
    settings = dataclasses.asdict(config.probe)
    return SegmentationProbe(
        *open_segmentation_splits(config.data),
        image_size=config.data.image_size,
        num_workers=config.data.num_workers,
        cache_gigabytes=settings.pop("keep_gigabytes"),
        **settings,
    )


def _prediction(scores: ModelScores, row: int, _image: Image.Image) -> Mask:
    return scores.predictions[row].numpy()


if __name__ == "__main__":
    run_main(main)
