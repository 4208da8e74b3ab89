"""A table that compares the students of a run."""

from collections.abc import Sequence

from pcd_hub.files.write import atomic_write
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.results.report import REPORT
from pcd_hub.train.students.folders import run_folder

TABLE = "students.md"

_SCORES = {
    "loss": "held-out loss",
    "retrieval": "retrieval, %",
    "cka": "CKA, %",
    "effective_rank": "effective rank",
}


def save_table(students: Sequence[Distillation], weight_names: Sequence[str]) -> None:
    """Write a table of several students into the run's folder, and print its path.

    Args:
        students: The trained students; one needs no table.
        weight_names: Name of the weight of each.
    """
    if len(students) == 1:
        return
    rows = [_row(d, name) for d, name in zip(students, weight_names, strict=True)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, ["---"] * len(columns)]
    cells += [[row.get(column, "") for column in columns] for row in rows]
    hours = students[0].folder.provenance()["hardware"]["seconds"] / 3600
    text = (
        f"# {len(students)} students in one pass\n\n"
        f"Teacher {students[0].config.teacher.source}, {hours:.2f} hours together since the last "
        "start.\n\n"
    )
    path = run_folder(students) / TABLE
    atomic_write(path, text + "".join(f"| {' | '.join(row)} |\n" for row in cells))
    print(f"\n{len(students)} students: {path}")


def _row(d: Distillation, weight_name: str) -> dict[str, str]:
    scored = d.held_out.exported if d.held_out else None
    scores = scored.means() if scored else {}
    report = f"{d.folder.path.name}/{REPORT}"
    return {
        "weight": weight_name,
        "steps": str(d.end.total_steps),
        "of step": str(d.exported_step),
        **{title: f"{scores[name]:.3f}" for name, title in _SCORES.items() if name in scores},
        **_mean_iou(d),
        "report": f"[{report}]({report})",
    }


def _mean_iou(d: Distillation) -> dict[str, str]:
    scores = d.probe_data
    mean = None if scores is None else scores.after(d.exported_step)
    return {} if mean is None else {"mean IoU, %": f"{mean:.1f}"}
