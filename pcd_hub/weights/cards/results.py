"""The section of a model card with the measurements, and tables of measurements elsewhere."""

from collections.abc import Mapping

from pcd_hub.files.markdown import escaped as _text
from pcd_hub.weights.record import Measurement

NOT_MEASURED = "not measured"
_USUAL = (
    ("segmentation", "ADE20K"),
    ("segmentation", "VOC"),
    ("segmentation", "Cityscapes"),
    ("k-NN", "ImageNet"),
    ("linear classification", "ImageNet"),
    ("detection", "COCO"),
)
"""Common benchmarks, as keywords of task and data set."""


def results(measured: Mapping[str, Measurement]) -> str:
    """Render the section with all measurements, and the usual ones that are missing."""
    missing = [
        f"{task} on {dataset}"
        for task, dataset in _USUAL
        if not any(
            task.lower() in table.task.lower() and dataset.lower() in table.dataset.lower()
            for table in measured.values()
        )
    ]
    missing += ["throughput", "energy"]
    tables = results_tables(measured)
    return "\n\n".join(["## Results", *tables, f"Not measured: {'; '.join(missing)}."])


def results_tables(measured: Mapping[str, Measurement]) -> list[str]:
    """Render one Markdown table for each evaluation."""
    return [results_table(metrics) for metrics in by_evaluation(measured)]


def by_evaluation(measured: Mapping[str, Measurement]) -> list[list[Measurement]]:
    """Group the measurements that are metrics of one evaluation."""
    evaluations: dict[tuple[object, ...], list[Measurement]] = {}
    for table in measured.values():
        facts = (table.task, table.dataset, table.images, table.seeds, table.protocol)
        alike = (*facts, table.protocol_version, table.command, table.subject, tuple(table.means))
        evaluations.setdefault(alike, []).append(table)
    return list(evaluations.values())


def results_table(metrics: list[Measurement]) -> str:
    """Render the metrics of one evaluation as a Markdown table, the best values in bold."""
    one = metrics[0]
    heads = [f"{_text(m.metric)} ({_text(m.unit)})" if m.unit else _text(m.metric) for m in metrics]
    lines = [
        f"**{_text(one.task)}**, {_text(one.dataset)}: n = {one.images}, {one.spread}",
        "",
        f"| model | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for model in one.means:
        label = f"**{_text(model)}** (this weight)" if model == one.subject else _text(model)
        lines.append(f"| {label} | {' | '.join(_cell(m, model) for m in metrics)} |")
    lines += ["", f"{_text(one.full_protocol)}. Again: {_text(one.command)}."]
    return "\n".join(lines)


def _cell(table: Measurement, model: str) -> str:
    spread = f" ± {table.stds[model]:.2f}" if table.stds else ""
    text = f"{table.means[model]:.2f}{spread}"
    is_best = table.means[model] == max(table.means.values())
    return f"**{text}**" if is_best and len(table.means) > 1 else text
