"""Save the weights of all students of a run, and a table that compares them."""

from collections.abc import Sequence
from pathlib import Path

from pcd_hub.files.write import atomic_write
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.results.report import REPORT
from pcd_hub.train.results.weight import save_weight
from pcd_hub.train.students.folders import run_folder

TABLE = "students.md"

_SCORES = {
    "loss": "held-out loss",
    "retrieval": "retrieval, %",
    "cka": "CKA, %",
    "effective_rank": "effective rank",
}


def save_students(
    students: Sequence[Distillation], weight_names: Sequence[str], *, warnings: Sequence[str]
) -> None:
    """Save the weight of every student; call it on the main process.

    Args:
        students: The trained students.
        weight_names: Name of the weight of each.
        warnings: The warnings of the run, for the reports.
    """
    for d, weight_name in zip(students, weight_names, strict=True):
        with d.own_state.in_use():
            save_weight(d, weight_name, warnings=warnings)
            d.folder.end_trackers()
    if len(students) > 1:
        table = save_table(students, weight_names)
        print(f"\n{len(students)} students: {table}")


def save_table(students: Sequence[Distillation], weight_names: Sequence[str]) -> Path:
    """Write the table of the students into the run's folder, and return its path."""
    path = run_folder(students) / TABLE
    scored = [d.held_out.exported for d in students if d.held_out and d.held_out.exported]
    names = [name for name in _SCORES if scored and name in scored[0].means()]
    head = ["weight", "steps", *map(_SCORES.__getitem__, names), "report"]
    rows = [head, ["---"] * len(head)]
    for d, weight_name in zip(students, weight_names, strict=True):
        found = d.held_out.exported if d.held_out else None
        scores = found.means() if found else {}
        shown = [f"{scores[name]:.3f}" if name in scores else "" for name in names]
        report = f"[{d.folder.path.name}/{REPORT}]({d.folder.path.name}/{REPORT})"
        rows.append([weight_name, str(d.exported_step), *shown, report])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    hours = students[0].folder.provenance()["hardware"]["seconds"] / 3600
    intro = (
        f"# {len(students)} students in one pass\n\n"
        f"Teacher {students[0].config.teacher.source}, {hours:.2f} hours together.\n\n"
    )
    atomic_write(path, intro + "\n".join(lines) + "\n")
    return path
