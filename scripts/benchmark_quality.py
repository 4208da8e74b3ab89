r"""Measure time to quality: minutes of training until a frozen linear probe reaches a mean IoU.

    python scripts/benchmark.py quality --images DIR --teacher timm:NAME --probe-data LABELLED \
        --variant 'cache=--teacher.cache auto' --minutes 5 30 --seeds 0 1 2 --out quality

Each variant is a set of options of ``pcd-hub distill``; the first, ``plain``, has none. Every run
(variant, budget, seed) and every probe is a process of its own; a second call continues where the
first one stopped, and a run with other options is a new run. ``OUT/quality.json`` holds all
results.

A budget is a run with its own learning-rate schedule. Its minutes are those of the training steps,
as its metrics.jsonl has them; start and closing measurements are not included. They are noted as
disturbed if other processes used more than a tenth of a core during the run; then give the cost of
a step on a quiet machine with ``--step-seconds plain=1.5``.

``--external FILE`` adds students of other libraries, trained in environments of their own and
probed here like ours. The file is a JSON list with an entry for each run::

    {"name": "peer", "minutes": 28, "seed": 0, "weights": "DIR or FILE", "architecture": "resnet18"}

``weights`` is anything that ``pcd-hub probe`` opens (a folder in timm's layout), or a checkpoint
file with timm's keys, which needs ``architecture``.
"""

import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import timm
from timm.models import save_for_hf

from measuring import print_table
from pcd_hub.errors import ConfigError, WeightError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.files.write import atomic_write
from pcd_hub.train.run_folder.provenance import provenance
from pcd_hub.train.student.weights import load_start
from pcd_hub.weights.catalogue import finished_export
from quality_times import PLAIN, Point, tables, with_spread


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run, by this library or another one."""

    variant: str
    budget: str
    """``--run.max-steps=500`` or ``--hours=0.5``; empty for external runs."""
    seed: int
    options: tuple[str, ...] = ()
    weights: str = ""
    """Weights of an external run."""
    architecture: str = ""
    minutes: float = 0.0
    """Minutes of an external run."""

    @property
    def name(self) -> str:
        """Name of the folder of this run, which changes with any of its options."""
        digest = hashlib.sha256(repr(dataclasses.astuple(self)).encode()).hexdigest()[:8]
        budget = self.budget.removeprefix("--").replace("=", "-").replace(".", "-")
        return "_".join(filter(None, [self.variant, budget, f"seed{self.seed}", digest]))


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--images", required=True, help="training images, as pcd-hub distill takes them")
    add("--teacher", required=True, help="as --teacher.source")
    add("--probe-data", nargs="+", required=True, help="labelled sets, as pcd-hub probe takes them")
    add("--config", default="own_images", help="configuration of pcd-hub distill")
    add(
        "--options",
        default="--student.weights=none",
        help="options of pcd-hub distill for every run, in quotes; default: random start",
    )
    add(
        "--variant",
        action="append",
        default=[],
        type=_named,
        metavar="NAME=OPTIONS",
        help="further options of a variant; plain without any is always the first",
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", nargs="+", type=float, help="lengths of the runs in minutes")
    budget.add_argument("--steps", nargs="+", type=int, help="lengths of the runs in steps")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the training")
    add("--probe-seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--probe-options", default="", help="options of pcd-hub probe, in quotes")
    add("--baselines", nargs="*", default=["random:resnet18"], help="models to probe as well")
    add("--external", type=Path, help="JSON file with students of other libraries")
    add(
        "--step-seconds",
        action="append",
        default=[],
        type=_named,
        metavar="NAME=SECONDS",
        help="seconds per step of a variant on a quiet machine",
    )
    add("--reference", type=float, help="mean IoU to reach; plain's at the largest budget")
    add("--out", type=Path, required=True, help="folder of runs and results")
    return parser


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"'{text}': expected NAME=VALUE, with a plain NAME")
    return name, value


def planned_runs(options: argparse.Namespace) -> list[Run]:
    """List all runs: for each seed and budget, the variants in turn; external runs last."""
    variants = {PLAIN: "", **dict(options.variant)}
    hours = [f"--hours={minutes / 60:.6g}" for minutes in options.minutes or ()]
    budgets = hours or [f"--run.max-steps={steps}" for steps in options.steps]
    runs = [
        Run(
            variant=name,
            budget=budget,
            seed=seed,
            options=(
                *(options.config, *shlex.split(options.images), "--teacher", options.teacher),
                *shlex.split(options.options),
                *shlex.split(extra),
            ),
        )
        for seed in options.seeds
        for budget in budgets
        for name, extra in variants.items()
    ]
    return runs + (read_external(options.external) if options.external else [])


def read_external(file: Path) -> list[Run]:
    """Read the runs of other libraries.

    Raises:
        ConfigError: If the file is not a list of complete entries.
    """
    try:
        return [
            Run(
                variant=str(entry["name"]),
                budget="",
                seed=int(entry.get("seed", 0)),
                weights=str(entry["weights"]),
                architecture=str(entry.get("architecture", "")),
                minutes=float(entry["minutes"]),
            )
            for entry in json.loads(file.read_text())
        ]
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"--external {file} ({type(error).__name__}: {error}): expected a JSON list of objects "
            "with name, minutes and weights"
        ) from error


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Train unless the run is finished, continue it if it was stopped; return its times."""
    times_file = folder.with_suffix(".json")
    times = json.loads(times_file.read_text()) if times_file.exists() else {"parts": []}
    if not _is_finished(folder):
        new = [*run.options, run.budget, f"--run.seed={run.seed}", "--run.no-store"]
        new += [f"--run.output-dir={folder}"]
        words = [f"--resume={folder}"] if any(folder.glob("checkpoints/*.pt")) else new
        times["parts"].append(_run_module("pcd_hub.train.distill", words, folder))
        atomic_write(times_file, json.dumps(times))
    return times | training_minutes(folder / "metrics.jsonl", _batch_size(folder))


def _is_finished(folder: Path) -> bool:
    try:
        finished_export(folder)
    except WeightError:
        return False
    return (folder / "report.md").exists()


def _batch_size(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["optim"]["global_batch_size"]


def training_minutes(metrics: Path, batch_size: int) -> dict[str, float]:
    """Sum the duration of all training steps, as their speed was logged.

    Steps that a resumed run repeats count once.
    """
    lines = {line["step"]: line for line in map(json.loads, metrics.read_text().splitlines())}
    seconds, done = 0.0, 0
    for step in sorted(lines):
        seconds += (step + 1 - done) * batch_size / lines[step]["images_per_s"]
        done = step + 1
    return {"steps": done, "minutes": seconds / 60}


def _run_module(module: str, words: Sequence[str], log: Path) -> dict[str, float]:
    """Run a module of the package; return minutes and the cores that other processes used.

    Raises:
        ConfigError: If it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.with_suffix(".log")
    started, busy = time.monotonic(), _busy_seconds()
    with file.open("a") as out:
        process = psutil.Popen([sys.executable, "-m", module, *words], stdout=out, stderr=out)
        own = psutil.Process()
        before = own.cpu_times()
        code = process.wait()
        after = own.cpu_times()
    wall = time.monotonic() - started
    used = sum(getattr(after, k) - getattr(before, k) for k in ("children_user", "children_system"))
    if code:
        tail = "\n".join(file.read_text(errors="replace").splitlines()[-5:])
        raise ConfigError(f"{module} {shlex.join(words)} failed; {file} ends with:\n{tail}")
    others = max(0.0, _busy_seconds() - busy - used) / wall
    return {"wall_minutes": wall / 60, "other_cores": round(others, 3)}


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system"))


def probe(model: str, data: str, options: argparse.Namespace, label: str) -> list[float]:
    """Probe a model on labelled images, unless it is done; return the mean IoU of each seed."""
    words = [data, model, "--run.seeds", *map(str, options.probe_seeds)]
    words += shlex.split(options.probe_options)
    digest = hashlib.sha256(repr(words).encode()).hexdigest()[:8]
    folder = options.out / "probes" / f"{label}_{Path(data).name}_{digest}"
    if not (folder / "evaluation.json").exists():
        words.append(f"--run.output-dir={folder}")
        _run_module("pcd_hub.train.frozen.probe", words, folder)
    (scores,) = Evaluation.load(folder).scores.values()
    if "mean IoU" not in scores:
        raise ConfigError(f"--probe-data {data} has no masks; expected a segmentation data set")
    return list(scores["mean IoU"])


def external_model(run: Run, folder: Path) -> str:
    """Return the name by which the probe opens an external student; convert a checkpoint file."""
    if not Path(run.weights).is_file():
        return run.weights
    if not run.architecture:
        raise ConfigError(f"--external: {run.weights} is a file; expected its architecture as well")
    if not (folder / "model.safetensors").exists():
        model = timm.create_model(run.architecture, num_classes=0)
        load_start(model, run.weights, architecture=run.architecture, image_size=224)
        save_for_hf(model, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def measure(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Train and probe one run."""
    folder = (options.out / "runs" / run.name).absolute()
    row: dict[str, Any] = dataclasses.asdict(run)
    if run.weights:
        model = external_model(run, folder)
    else:
        row |= train(run, folder)
        given = dict(options.step_seconds).get(run.variant)
        if given is not None:
            row |= {"minutes": float(given) * row["steps"] / 60, "step_seconds": float(given)}
        model = str(folder)
    row["mean_iou"] = {data: probe(model, data, options, run.name) for data in options.probe_data}
    return row


def main(arguments: Sequence[str]) -> None:
    """Train and probe everything that is missing, saving after each run; print the tables."""
    options = build_parser().parse_args(arguments)
    runs = planned_runs(options)
    results: dict[str, Any] = provenance() | {
        "command": shlex.join(["scripts/benchmark.py", "quality", *arguments]),
        "baselines": {
            name: {data: probe(name, data, options, f"baseline{n}") for data in options.probe_data}
            for n, name in enumerate(options.baselines)
        },
        "rows": [],
    }
    for number, run in enumerate(runs, start=1):
        print(f"{number} of {len(runs)}: {run.name}", flush=True)
        results["rows"].append(measure(run, options))
        atomic_write(options.out / "quality.json", json.dumps(results, indent=1) + "\n")
    for data in options.probe_data:
        for name, scores in results["baselines"].items():
            print(f"\n{name}: {with_spread(Point.of([0.0], [scores[data]]))} on {data}")
        parts = tables(results["rows"], data, options.reference)
        for header, lines in zip(parts, parts, strict=True):
            print_table(header, lines)


if __name__ == "__main__":
    main(sys.argv[1:])
