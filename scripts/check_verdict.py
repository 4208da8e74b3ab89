"""Check the early verdict on good runs, and on runs that are broken on purpose.

    python scripts/check_verdict.py --images PHOTOS FOLDER ... --teacher local-dir:DIR --out OUT

Every run is a process of its own, and a row of ``OUT/rows.jsonl`` as soon as it ends; a second call
continues. A broken run ends after the first tenth of its steps: it counts as named if a warning
names its fault by then. A good run is trained to its end: any warning of a fault is a false alarm.
"""

import argparse
import contextlib
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from timm.models import save_for_hf

from measuring import print_table
from pcd_hub.method.queue import KeyQueue
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train import distill
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.weights.shipped import FOLDER as SHIPPED

SHARE = 0.1
"""Share of a broken run's steps in which its fault must be named."""
STEPS = 320
"""Steps of a run; runs of fewer than 300 are never called flat."""
_BASE = (
    "--student.weights=none",
    "--teacher.image-size=128",
    "--data.image-size=64",
    "--data.num-workers=0",
    "--data.min-crop-area=0.2",
    "--optim.global-batch-size=16",
    "--optim.lr-per-256=1.6e-2",
    "--run.no-store",
    "--run.log-every-steps=5",
)
_COPIES = 20
_RESNET, _MOBILENET = "resnet18", "mobilenetv4_conv_small"
_UNFIT = "do not fit the teacher"
_UNTRAINED = "as random weights do"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, good or broken."""

    name: str
    named_by: str = ""
    """Part of the warning that names its fault; empty for a good run."""
    sabotage: str = ""
    """Change of the code that breaks it, a key of ``_SABOTAGE``."""
    options: tuple[str, ...] = ()
    teacher: str = "given"
    images: int = 0
    """Number of the folder of images, counted from 0; the last one if there are fewer."""
    config: str = "quickstart"


def broken_runs() -> Iterator[Run]:
    """Yield the runs that are broken on purpose."""
    yield Run(
        name="queue of almost equal keys",
        sabotage="almost equal keys",
        named_by="queue is degenerate",
    )
    yield Run(name="queue without new keys", sabotage="no new keys", named_by="no new keys")
    for arch in (_MOBILENET, _RESNET):
        options = (f"--student.arch={arch}",)
        yield Run(
            name=f"learning rate x 100, {arch}",
            options=(*options, "--optim.lr-per-256=1.6"),
            named_by="learning rate is",
        )
        yield Run(
            name=f"targets of other images, {arch}",
            sabotage="other images",
            options=options,
            named_by="paired wrongly",
        )
    for teacher in ("random", "random resnet18"):
        yield Run(name=f"teacher of {teacher} weights", teacher=teacher, named_by="random weights")
    for mean, std in ((0.45, 0.225), (0.0, 1.0), (0.0, 1 / 255), (0.5, 0.25)):
        yield _with_normalisation(mean, std, "given")
    yield _with_normalisation(0.5, 0.5, "shipped")
    yield Run(
        name=f"{_COPIES} copies of each image", config="own_images", named_by="copies of others"
    )


def _with_normalisation(mean: float, std: float, teacher: str) -> Run:
    values = ("--teacher.mean", *[f"{mean}"] * 3, "--teacher.std", *[f"{std}"] * 3)
    name = f"{teacher} teacher with mean {mean:.3g}, std {std:.3g}"
    return Run(name=name, teacher=teacher, options=values, named_by=_UNFIT)


_GOOD = (
    # student, options, teacher, folder of images
    (_MOBILENET, "", "given", 0),
    (_MOBILENET, "", "given", 0),
    (_RESNET, "", "given", 0),
    (_RESNET, "", "shipped", 0),
    (_MOBILENET, "", "shipped", 1),
    (_MOBILENET, "", "quickstart", 0),
    (_RESNET, "--data.source=scenes:2000", "quickstart", 0),
    (_MOBILENET, "--optim.lr-per-256=4e-3", "given", 1),
    (_MOBILENET, "--optim.lr-per-256=6.4e-2", "given", 0),
    (_RESNET, "--optim.lr-per-256=6.4e-2", "shipped", 0),
    (_MOBILENET, "--method.loss=cosine_smooth_l1", "given", 0),
    (_MOBILENET, "--method.loss=similarity_kl", "given", 1),
    (_MOBILENET, "--method.targets=pooled", "given", 0),
    (_MOBILENET, "--method.views=cross", "given", 0),
    (_MOBILENET, "--method.queue-length=16", "given", 2),
    (_MOBILENET, "--method.temperature=0.07", "given", 2),
    ("convnext_atto", "", "given", 0),
    ("mobilenetv3_large_100", "", "given", 1),
    ("efficientnet_b0", "--data.augment=light", "given", 0),
    (_RESNET, "--optim.global-batch-size=32", "given", 2),
)


def good_runs() -> Iterator[Run]:
    """Yield runs that should learn: other students, teachers, images, losses and rates."""
    for seed, (arch, option, teacher, images) in enumerate(_GOOD):
        options = (f"--student.arch={arch}", f"--run.seed={seed}", *option.split())
        name = f"{seed}: {arch} {option} {teacher} {images}"
        yield Run(name=name, options=options, teacher=teacher, images=images)


def _equal_keys() -> Any:
    push = KeyQueue.push

    def push_one(queue: KeyQueue, keys: torch.Tensor) -> None:
        push(queue, 1 + 0.01 * torch.randn_like(keys))

    return mock.patch.object(KeyQueue, "push", push_one)


def _no_new_keys() -> Any:
    return mock.patch.object(KeyQueue, "push")


def _other_images() -> Any:
    pair = distill.pair_views

    def pair_wrongly(target: torch.Tensor, config: Any) -> torch.Tensor:
        one, other = pair(target, config).chunk(2)
        return torch.cat([one.roll(1, 0), other.roll(1, 0)])

    return mock.patch.object(distill, "pair_views", pair_wrongly)


_SABOTAGE: dict[str, Callable[[], Any]] = {
    "": contextlib.nullcontext,
    "almost equal keys": _equal_keys,
    "no new keys": _no_new_keys,
    "other images": _other_images,
}


class Enough(Exception):  # noqa: N818 - no error: it ends a run
    """The part of a run that is judged is over."""


class Warnings(logging.Handler):
    """Collects the warnings of a run, with the step after which each was logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.step = 0
        self.found: list[tuple[int, str]] = []
        self.last_verdict = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning or a verdict."""
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.found.append((self.step, message))
        if is_verdict(message):
            self.last_verdict = message


def train_one(run: Run, arguments: list[str], *, steps: int) -> dict[str, Any]:
    """Train a run to its end, or to the end of its first tenth if it is broken; return its row."""
    warnings, train_student = Warnings(), distill.train_student

    def count_steps(d: Distillation) -> Iterator[Any]:
        for step, training in enumerate(train_student(d)):  # the first is before the first step
            warnings.step = step
            yield training
            if run.named_by and step >= SHARE * steps:
                raise Enough

    logging.getLogger("pcd_hub").addHandler(warnings)
    counted = mock.patch.object(distill, "train_student", count_steps)
    with _SABOTAGE[run.sabotage](), counted, contextlib.suppress(Enough):
        distill.main([run.config, *arguments, *run.options])
    named = [each for each in warnings.found if run.named_by and run.named_by in each[1]]
    alarms = [each for each in warnings.found if is_alarm(each[1])]
    return {
        "name": run.name,
        "steps": steps,
        "named": named[:1],
        "alarms": alarms,
        "last_verdict": warnings.last_verdict,
    }


def is_verdict(message: str) -> bool:
    """Return whether a message is an early verdict."""
    return bool(re.match(r"(warning: )?step \d+ of \d+, \S+: \D", message))


def is_alarm(warning: str) -> bool:
    """Return whether a warning says that a run is broken."""
    return is_verdict(warning) or _UNFIT in warning or _UNTRAINED in warning


def arguments_of(run: Run, *, folders: list[str], teacher: str, out: Path, steps: int) -> list[str]:
    """Return the arguments of a run, but for its own options."""
    source = {
        "given": teacher,
        "shipped": f"local-dir:{SHIPPED / 'resnet18.pcd'}",
        "quickstart": "quickstart",
    }.get(run.teacher) or random_teacher(run.teacher, teacher, out)
    images = folders[min(run.images, len(folders) - 1)]
    base = _BASE
    if run.config == "own_images":
        images, base = str(copies(Path(images), out)), ("--run.no-store", "--student.weights=none")
    else:
        base += ("--probe-scenes=0",)
    run_folder = out / "run"
    shutil.rmtree(run_folder, ignore_errors=True)
    return [
        *base,
        f"--student.arch={_MOBILENET}",
        f"--teacher.source={source}",
        f"--data.source={images}",
        f"--run.output-dir={run_folder}",
        f"--run.max-steps={steps}",
    ]


def random_teacher(name: str, teacher: str, out: Path) -> str:
    """Return the source of a teacher of random weights, of the given one's architecture."""
    arch = name.removeprefix("random").strip() or load_teacher(teacher).facts.architecture
    folder = out / f"random_{arch}"
    torch.manual_seed(0)
    save_for_hf(timm.create_model(arch), str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def copies(images: Path, out: Path) -> Path:
    """Return a folder with ``_COPIES`` copies of each of ``_COPIES`` images."""
    folder = out / "copies"
    folder.mkdir(exist_ok=True)
    for file in sorted(images.glob("*.jpg"))[:_COPIES]:
        for number in range(_COPIES):
            shutil.copyfile(file, folder / f"{file.stem}_{number}.jpg")
    return folder


def read_rows(file: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of the runs that ended, by name."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print one table of the broken runs and one of the good ones."""
    broken = [rows[run.name] for run in broken_runs() if run.name in rows]
    cells = [_cells(row["name"], row["named"], nothing="not named") for row in broken]
    print_table(["broken run", "named after step", "by"], cells)
    num_named = sum(bool(row["named"]) for row in broken)
    print(f"{num_named} of {len(broken)} named within the first {SHARE:.0%}\n")
    good = [rows[run.name] for run in good_runs() if run.name in rows]
    cells = [
        [*_cells(row["name"], row["alarms"], nothing="none"), row["last_verdict"]] for row in good
    ]
    print_table(["good run", "false alarm after step", "words", "last verdict"], cells)
    print(f"{sum(bool(row['alarms']) for row in good)} false alarms in {len(good)} runs")


def _cells(name: str, warnings: list[tuple[int, str]], *, nothing: str) -> list[str]:
    step, text = warnings[0] if warnings else (nothing, "")
    return [name, str(step), text]


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--teacher", required=True, help="source of a teacher with batch norms")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows and runs")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each run")
    parser.add_argument("--only", default="", help="runs whose name has this part")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # a run, in the process of its own
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = {run.name: run for run in (*broken_runs(), *good_runs()) if options.only in run.name}
    file = options.out / "rows.jsonl"
    if options.run:
        folders, out, steps = options.images, options.out, options.steps
        run = runs[options.run]
        arguments = arguments_of(
            run, folders=folders, teacher=options.teacher, out=out, steps=steps
        )
        row = train_one(run, arguments, steps=steps)
        with file.open("a") as rows:
            rows.write(json.dumps(row) + "\n")
        return
    for name in [name for name in runs if name not in read_rows(file)]:
        subprocess.run([sys.executable, *sys.argv, f"--run={name}"], check=False)  # noqa: S603
    show(read_rows(file))


if __name__ == "__main__":
    main()
