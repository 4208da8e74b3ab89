"""Figures of training curves."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from pcd_hub.report.png import save_figure


def save_training_curve(path: Path, metrics: Path) -> None:
    """Plot loss and learning rate by step, as logged in ``metrics.jsonl``."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(7, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, [line["loss"] for line in lines], color="#1f5fa8")
    axes.set(xlabel="step", ylabel="loss (logged steps)")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [line["lr"] for line in lines], color="#c0504d", linewidth=0.8)
    rates.set_ylabel("learning rate", color="#c0504d")
    save_figure(path, figure)
