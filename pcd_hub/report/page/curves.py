"""The curves of a run: loss, learning rate, speed, monitors and held-out scores."""

from collections.abc import Mapping, Sequence

from pcd_hub.report.page.chart import Curve
from pcd_hub.report.page.run_folder import Line
from pcd_hub.report.run_report import MEAN_IOU

_TITLES = {
    "loss": "Loss",
    MEAN_IOU: "Mean IoU of a linear probe on labelled images, %",
    "held_out_loss": "Loss on held-out images",
    "held_out_cka": "CKA with the teacher on held-out images, %",
    "held_out_retrieval": "Teacher's nearest pixel in top-1, held-out images, %",
    "held_out_effective_rank": "Effective rank of the student's pixels, held-out images",
    "probe_data_pixel_accuracy": "Pixel accuracy of a linear probe on labelled images, %",
    "lr": "Learning rate",
    "images_per_s": "Speed, images/s",
    "data_wait": "Share of the time spent waiting for images",
    "pixel_top1": "Teacher's pixel is the nearest, share of the student's pixels",
    "pixel_cka": "CKA of the student's pixels with the teacher's",
    "pixel_rank": "Effective rank of the student's pixels",
    "pixel_cosine": "Mean cosine of the student's pixels",
    "key_cosine": "Mean cosine of the batch's keys",
    "pixel_chance": "Teacher's pixel is the nearest, share by a guess",
    "teacher_rank": "Effective rank of the teacher's pixels",
    "teacher_cosine": "Mean cosine of the teacher's vectors of different images",
    "teacher_views": "Teacher matches the two views, share of the images",
    "gradient_norm": "Norm of the gradient",
}
"""Titles of the known metrics, in the order of the page; others follow under their names."""
_WITH_START = {MEAN_IOU, "held_out_cka", "held_out_retrieval"}
_FROM_ZERO = {"lr", "images_per_s", "data_wait"}
_MAX_CURVES = 40


def find_curves(metrics: Sequence[Line], scores: Mapping[str, Sequence[Line]]) -> tuple[Curve, ...]:
    """Return the curves of all metrics that were logged at two steps or more.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        scores: Lines of the files of scores, by the files' names.
    """
    lines = [metrics]
    for file, measured in scores.items():
        lines.append([{_prefixed(key, file): v for key, v in line.items()} for line in measured])
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in (line for part in lines for line in part):
        for name, value in line.items():
            if name != "step":
                steps, values = found.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    order = {name: place for place, name in enumerate(dict.fromkeys([*_TITLES, *found]))}
    names = sorted(found, key=lambda name: order[name])[:_MAX_CURVES]
    return tuple(
        Curve(
            name=name,
            title=_TITLES.get(name, name.replace("_", " ")),
            steps=found[name][0],
            values=found[name][1],
            from_zero=name in _FROM_ZERO,
            start=found[name][1][0] if name in _WITH_START and found[name][0][0] == 0 else None,
        )
        for name in names
        if len(found[name][0]) > 1
    )


def _prefixed(key: str, file: str) -> str:
    return key if key == "step" else f"{file}_{key}"
