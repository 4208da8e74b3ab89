"""How the time of a run was spent, as far as its files tell."""

from collections.abc import Sequence

from pcd_hub.report.page.run_folder import Line
from pcd_hub.weights.record import WeightRecord


def split_time(record: WeightRecord, lines: Sequence[Line]) -> dict[str, str]:
    """Return the parts of the run's time by label; empty if no speed was logged.

    Between two logged steps, ``metrics.jsonl`` has the speed, which includes the wait for images
    and measurements on held-out images.
    """
    batch = record.config["optim"]["global_batch_size"]
    before, training, waiting = -1.0, 0.0, 0.0
    for line in lines:
        steps, speed = line["step"] - before, line.get("images_per_s", 0.0)
        before = line["step"]
        if speed > 0 and steps > 0:
            seconds = steps * batch / speed
            training += seconds
            waiting += seconds * min(1.0, max(0.0, line.get("data_wait", 0.0)))
    if not training:
        return {}
    total = float(record.hardware["seconds"])
    parts = {
        "waiting for images": f"{_minutes(waiting)}, {100 * waiting / training:.1f} % of the steps",
        "teacher and student": f"{_minutes(training - waiting)}, "
        f"{100 * (1 - waiting / training):.1f} % of the steps; not measured apart",
    }
    if total > training:  # otherwise the run was resumed, and the record has its last part only
        parts["before, between and after the steps"] = (
            f"{_minutes(total - training)}: start, checkpoints, export and closing measurements"
        )
    return parts


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
