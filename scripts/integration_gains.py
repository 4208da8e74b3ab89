"""Measure what a weight gains over random weights in other packages, on short schedules.

    python scripts/integration_gains.py --segmentation PETS --detection CELLS \
        --results runs/gains.jsonl

``PETS`` has images, masks and classes.json, ``CELLS`` has COCO annotations; without one of them its
models are left out. Every run (package, start, seed) is a line of ``--results``, written as soon as
it is measured; a second call continues where the first one stopped. It needs the extra
``integrations``. The last results are in docs/use_it_in.md and recipes/RESULTS.md.

Both starts have the same new layers, batches, flips and schedule at equal seeds. Their learning
rates may differ, so that each can have its own best one: ``--lr-random`` and ``--lr-weight``.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from integration_models import DETECTORS, SEGMENTERS, WEIGHT_ONLY
from integration_training import DetectionTask, Schedule, SegmentationTask
from integration_yolo import YOLOS, YoloTask
from pcd_hub.errors import ConfigError, PCDHubError
from pcd_hub.files.markdown import table
from pcd_hub.train.lab.paired import RULE, paired_difference
from pcd_hub.train.lab.table import mean_and_std
from pcd_hub.train.run_folder.provenance import installed_version, provenance

RANDOM = "random"
_PACKAGES = ("segmentation-models-pytorch", "transformers", "ultralytics")
_BUILDERS = {**SEGMENTERS, **DETECTORS, **YOLOS}
_BATCH_SIZE = {**dict.fromkeys(DETECTORS, 2), **dict.fromkeys(YOLOS, 4)}
Task = SegmentationTask | DetectionTask | YoloTask


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training; every field may change the score."""

    model: str
    start: str
    """``random`` or the name of a weight."""
    data: str
    test_split: str
    image_size: int
    steps: int
    batch_size: int
    lr: float
    seed: int

    @property
    def conditions(self) -> str:
        """What runs that are compared must have in common."""
        return (
            f"{self.data}, {self.steps} steps of {self.batch_size} images of {self.image_size} px, "
            f"scored on {self.test_split}"
        )

    def schedule(self) -> Schedule:
        """Return the length of the training."""
        return Schedule(steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=self.seed)


def planned_runs(options: argparse.Namespace) -> list[Run]:
    """Return all runs, seed after seed, so that a stopped measurement has whole seeds."""
    rates = {RANDOM: options.lr_random, options.weight: options.lr_weight}
    runs: dict[Run, None] = {}  # models may share their random weights
    for seed in options.seeds:
        for name in _models(options):
            for start, lr in rates.items():
                model = WEIGHT_ONLY.get(name, name) if start == RANDOM else name
                runs[_run(model, start, lr, seed, options)] = None
    return list(runs)


def _run(model: str, start: str, lr: float, seed: int, options: argparse.Namespace) -> Run:
    segmenter = model in SEGMENTERS
    return Run(
        model=model,
        start=start,
        data=(options.segmentation if segmenter else options.detection).name,
        test_split=options.test_split,
        image_size=options.image_size if segmenter else 160,
        steps=options.steps,
        batch_size=8 if segmenter else _BATCH_SIZE[model],
        lr=lr,
        seed=seed,
    )


def _models(options: argparse.Namespace) -> list[str]:
    tables = (
        (options.segmentation, SEGMENTERS),
        (options.detection, DETECTORS),
        (options.detection, YOLOS),
    )
    possible = [name for data, models in tables if data for name in models]
    chosen = options.models or possible
    unknown = [name for name in chosen if name not in possible]
    if unknown or not possible:
        found = f"--models {unknown[0]}" if unknown else "neither --segmentation nor --detection"
        raise ConfigError(
            f"{found}: expected one of {', '.join(_BUILDERS)}, and the data that it needs"
        )
    return chosen


def measure(run: Run, task: Task) -> dict[str, Any]:
    """Train and score one model; return the line for the results."""
    torch.manual_seed(run.seed)
    model = _BUILDERS[run.model](None if run.start == RANDOM else run.start, task.num_classes)
    torch.manual_seed(run.seed)  # of dropout and of sampled regions
    start = time.perf_counter()
    task.train(model, run.schedule())
    seconds = time.perf_counter() - start
    scores = task.score(model)
    packages = {name: version for name in _PACKAGES if (version := installed_version(name))}
    return {
        "run": asdict(run),
        "scores": scores,
        "training_seconds": seconds,
        "packages": packages,
        **provenance(),
    }


def measure_all(runs: Sequence[Run], options: argparse.Namespace) -> dict[Run, dict[str, float]]:
    """Measure the runs that are not in the results; return the scores of all."""
    known = read_results(options.results)
    tasks: dict[type[Task], Task] = {}
    for run in runs:
        if run in known:
            continue
        kind = _kind(run.model)
        if kind not in tasks:
            tasks[kind] = _task(run, options)
        line = measure(run, tasks[kind])
        with options.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        known[run] = line["scores"]
        scores = ", ".join(f"{name} {value:.2f}" for name, value in known[run].items())
        seconds = line["training_seconds"]
        print(f"{run.model}, {run.start}, seed {run.seed}: {scores} ({seconds:.0f} s)", flush=True)
    return {run: known[run] for run in runs}


def _kind(model: str) -> type[Task]:
    if model in SEGMENTERS:
        return SegmentationTask
    return YoloTask if model in YOLOS else DetectionTask


def _task(run: Run, options: argparse.Namespace) -> Task:
    kind, split, size = _kind(run.model), run.test_split, run.image_size
    if kind is DetectionTask:
        return DetectionTask(options.detection, test_split=split)
    if kind is YoloTask:
        return YoloTask(options.detection, test_split=split, image_size=size)
    return SegmentationTask(options.segmentation, test_split=split, image_size=size)


def read_results(file: Path) -> dict[Run, dict[str, float]]:
    """Read the lines of former calls."""
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    return {Run(**row["run"]): row["scores"] for row in rows}


def gains_table(found: Mapping[Run, Mapping[str, float]]) -> str:
    """Render means, spreads and paired differences from random weights.

    The learning rate is not a condition: each start may have its own.
    """
    groups: dict[tuple[str, ...], dict[int, float]] = {}
    for run, scores in found.items():
        for metric, value in scores.items():
            key = (run.model, run.conditions, metric, run.start)
            groups.setdefault(key, {})[run.seed] = value
    rows = []
    for (model, conditions, metric, start), values in groups.items():
        baseline = (WEIGHT_ONLY.get(model, model), conditions, metric, RANDOM)
        if start != RANDOM and baseline in groups:
            rows.append((model, conditions, start, metric, *_cells(values, groups[baseline])))
    heads = ("model", "training", "weight", "metric (%)", "random weights", "from the weight")
    return table((*heads, "difference", "n"), rows)


def _cells(values: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[str, ...]:
    common = values.keys() & baseline.keys()
    difference = paired_difference(values, baseline)
    if difference is None:
        return ("", "", "no common seed", "0")
    means = [mean_and_std({s: each[s] for s in common}) for each in (baseline, values)]
    mean, std, verdict = difference.mean, difference.std, difference.verdict
    noted = "" if verdict in {"higher", "lower"} else f" ({verdict})"
    cells = [_plus_minus(f"{value:.1f}", spread) for value, spread in means]
    return (*cells, _plus_minus(f"{mean:+.1f}", std) + noted, str(len(common)))


def _plus_minus(value: str, spread: float | None) -> str:
    return value if spread is None else f"{value} ± {spread:.1f}"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table, or print a one-line error; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--segmentation", type=Path, help="folder of images and masks")
    parser.add_argument("--detection", type=Path, help="folder of images and COCO annotations")
    parser.add_argument("--test-split", default="test")
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--models", nargs="+", help="models to measure; default: all")
    parser.add_argument("--weight", default="resnet18.pcd")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--image-size", type=int, default=96, help="of the segmenters")
    parser.add_argument("--lr-random", type=float, default=1e-3)
    parser.add_argument("--lr-weight", type=float, default=1e-3)
    options = parser.parse_args(arguments)
    try:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        found = measure_all(planned_runs(options), options)
    except (PCDHubError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{gains_table(found)}\n\n± over the seeds. {RULE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
