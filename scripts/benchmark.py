"""How fast: the training step against the same step written plainly, and its parts.

    python scripts/benchmark.py step --image-size 96 --batch-size 32
    python scripts/benchmark.py loss data models growth --out benchmark.json

Everything is synthetic or of your own (``--images DIR``); teachers and students are at random
start, as speed does not depend on what they know. Numbers of one run are compared with each other
only: on a shared machine absolute times mean little. Each step is measured in a process of its own,
recipe and plain in turn; the table shows medians and half the spread between the quartiles.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmark_parts import (
    LOSS_CASES,
    benchmark_data,
    benchmark_loss,
    benchmark_models,
    synthetic_images,
)
from benchmark_step import STAGES, SWITCHES, StepCase, plain_network
from measuring import DEVICE, matmul_rate, median_and_spread, print_table
from pcd_hub.data.files import ImageFiles
from pcd_hub.models.grid import pixel_grid
from pcd_hub.models.teachers import load_teacher, save_teacher
from pcd_hub.train.run_folder.folder import surroundings

_ADVICE = {
    "data wait": "more --data.num-workers, smaller files, or a faster disk",
    "teacher": "a smaller teacher, --teacher.image-size below the student's, or bf16 units",
    "student": "a smaller student or image, or bf16 units",
    "backward": "a smaller student or image, or bf16 units",
    "loss": "a shorter --method.queue-length, or the loss on fewer pixels (smaller images)",
    "optimizer": "a larger --optim.global-batch-size",
}


# What the step is made of.


def synthetic_teacher(architecture: str, folder: Path) -> Path:
    """A teacher at random start: ResNets with MoCo v3's head, others without one."""
    torch.manual_seed(0)
    backbone: Any = timm.create_model(architecture, num_classes=0)
    head = None
    if "resnet" in architecture:
        layers: list[nn.Module] = []
        for inputs, outputs in ((backbone.num_features, 4096), (256, 4096)):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
            layers += [nn.Linear(outputs, 256, bias=False), nn.BatchNorm1d(256, affine=False)]
        head = nn.Sequential(*layers)
    facts = {"architecture": architecture, "license": "not stated"}
    save_teacher(folder, backbone.state_dict(), head, facts)
    return folder


def listed(folder: Path, at_least: int, file: Path) -> Path:
    """A list of the folder's images, repeated until there are enough for queue and steps."""
    paths = [str((folder / path).absolute()) for path in ImageFiles.from_folder(folder).paths()]
    file.write_text("\n".join((paths * (at_least // len(paths) + 1))[:at_least]))
    return file


def step_flops(case: StepCase) -> dict[str, float]:
    """FLOP of one image in two views, by the tensors' shapes: one multiply-add is two."""
    teacher = load_teacher(f"local-dir:{case.teacher}", image_size=case.image_size)
    backbone = timm.create_model(case.student, num_classes=0)
    student = pixel_grid(backbone, image_size=case.image_size)
    network = plain_network(student, teacher.num_channels)
    images = torch.zeros(2, 3, case.image_size, case.image_size)
    counted = []
    for run in (
        lambda: teacher.head(teacher.grid(images)),
        lambda: network(images),
        lambda: network(images).sum().backward(),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        counted.append(float(counter.get_total_flops()))
    pixels = network(images)
    products = 4 * (pixels.numel() // pixels.shape[1]) * case.queue_length * pixels.shape[1]
    return {
        "teacher": counted[0],
        "student": counted[1],
        "backward": counted[2] - counted[1],
        "loss": float(products),
    }


def run_step(kind: str, case: StepCase, steps: int, timeline: Path | None = None) -> dict[str, Any]:
    """One case in a fresh process."""
    script = Path(__file__).with_name("benchmark_step.py")
    command = [sys.executable, str(script), kind, json.dumps(dataclasses.asdict(case))]
    command += ["--steps", str(steps)] + (["--timeline", str(timeline)] if timeline else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{kind} {case} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# The benchmarks.


def benchmark_step(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(a) and (b): the recipe's step and the plain one, in turn."""
    case = step_case(options, folder)
    off = tuple(sorted({*options.off, *(("bf16",) if not options.bf16 else ())}))
    variants = {"plain": ("plain", case), "recipe": ("recipe", dataclasses.replace(case, off=off))}
    for switch in options.without:
        less = dataclasses.replace(case, off=tuple(sorted({*off, switch})))
        variants[f"recipe without {switch}"] = ("recipe", less)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for _ in range(options.repeats):
        for name, (kind, variant) in variants.items():
            timeline = options.timeline if name == "recipe" else None
            found[name].append(run_step(kind, variant, options.steps, timeline))
    flops, rate = step_flops(case), matmul_rate(torch.float32)
    summary = {name: summarise(runs, case.batch_size) for name, runs in found.items()}
    _print_steps(summary, flops, rate, case)
    return {
        "case": dataclasses.asdict(case) | {"teacher": options.teacher},
        "flop_per_image": flops,
        "matmul_flop_per_s": rate,
        "variants": summary,
    }


def summarise(runs: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Medians over all steps of all processes."""
    taken = [second for run in runs for second in run["seconds"]]
    median, spread = median_and_spread(taken)
    return {
        "images_per_s": batch_size / median,
        "seconds": median,
        "spread": spread,
        "split": {s: statistics.median(run["split"][s] for run in runs) for s in STAGES},
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


def _print_steps(
    summary: dict[str, Any], flops: dict[str, float], rate: float, case: StepCase
) -> None:
    plain = summary["plain"]
    print_table(
        ["step", "images/s", "speed", "peak memory", "", "of the matmul rate", *STAGES],
        [
            [
                name,
                f"{found['images_per_s']:.2f} ± {100 * found['spread'] / found['seconds']:.0f} %",
                f"{found['images_per_s'] / plain['images_per_s']:.2f} x",
                f"{found['peak_bytes'] / 2**30:.2f} GiB",
                f"{found['peak_bytes'] / plain['peak_bytes']:.2f} x",
                f"{100 * sum(flops.values()) * found['images_per_s'] / rate:.0f} %",
                *(f"{1000 * found['split'][stage]:.0f} ms" for stage in STAGES),
            ]
            for name, found in summary.items()
        ],
    )
    split = summary["recipe"]["split"]
    limit = max(split, key=lambda stage: split[stage])
    reached = [
        f"{stage} {100 * flops[stage] * case.batch_size / split[stage] / rate:.0f} %"
        for stage in flops
        if split[stage]
    ]
    print(
        f"\n{sum(flops.values()) / 1e9:.1f} GFLOP an image in two views; "
        f"a matrix product reaches {rate / 1e9:.0f} GFLOP/s here. Of that rate: "
        f"{', '.join(reached)}.\nWhat limits the run: {limit}. Next to change: {_ADVICE[limit]}."
    )


def benchmark_growth(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(f): the recipe's step as queue, batch and image grow, one at a time."""
    base = dataclasses.replace(step_case(options, folder), off=() if options.bf16 else ("bf16",))
    cases = [("queue", dataclasses.replace(base, queue_length=k)) for k in options.queues]
    cases += [("batch", dataclasses.replace(base, batch_size=b)) for b in options.batches]
    cases += [("image", dataclasses.replace(base, image_size=s)) for s in options.sizes]
    results, rows = [], []
    for grows, case in cases:
        longest = max(2 * case.queue_length, case.batch_size * (options.steps + 8))
        images = listed(_image_folder(options, folder), longest, folder / "grown.txt")
        case = dataclasses.replace(case, images=str(images))  # noqa: PLW2901
        found = summarise([run_step("recipe", case, options.steps)], case.batch_size)
        results.append({"grows": grows, **dataclasses.asdict(case), **found})
        rows.append(
            [
                grows,
                f"{case.queue_length}",
                f"{case.batch_size}",
                f"{case.image_size} px",
                f"{found['images_per_s']:.2f}",
                f"{1000 * found['split']['loss']:.0f} ms",
                f"{found['peak_bytes'] / 2**30:.2f} GiB",
            ]
        )
    print_table(["grows", "queue", "batch", "image", "images/s", "loss", "peak memory"], rows)
    return {"results": results}


def step_case(options: argparse.Namespace, folder: Path) -> StepCase:
    """The case of the command line."""
    at_least = max(2 * options.queue_length, options.batch_size * (options.steps + 8))
    return StepCase(
        teacher=str(synthetic_teacher(options.teacher, folder / f"teacher_{options.teacher}")),
        images=str(listed(_image_folder(options, folder), at_least, folder / "images.txt")),
        student=options.student,
        image_size=options.image_size,
        batch_size=options.batch_size,
        queue_length=options.queue_length,
        compile=options.compile,
    )


def _image_folder(options: argparse.Namespace, folder: Path) -> Path:
    if options.images is not None:
        return options.images
    made = folder / "synthetic"
    return made if made.exists() else synthetic_images(made)


BENCHMARKS = {
    "step": benchmark_step,
    "loss": benchmark_loss,
    "data": benchmark_data,
    "models": benchmark_models,
    "growth": benchmark_growth,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("what", nargs="+", choices=list(BENCHMARKS))
    made.add_argument("--teacher", default="resnet50", help="a timm architecture")
    made.add_argument("--student", default="resnet18")
    made.add_argument("--images", type=Path, help="a folder; JPEGs of 500 x 375 if not given")
    made.add_argument("--image-size", type=int, default=96)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--queue-length", type=int, default=65_536)
    made.add_argument("--steps", type=int, default=5, help="timed, in each process")
    made.add_argument("--repeats", type=int, default=3, help="processes for each kind of step")
    made.add_argument("--off", nargs="*", default=[], choices=SWITCHES, help="in the recipe's step")
    made.add_argument("--without", nargs="*", default=[], choices=SWITCHES, help="one row for each")
    made.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=DEVICE.type == "cuda"
    )
    made.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--timeline", type=Path, help="write a trace for chrome://tracing")
    made.add_argument("--loss-cases", nargs="*", type=_three, default=LOSS_CASES, metavar="N,K,C")
    made.add_argument("--data-sizes", nargs="*", type=int, default=[96, 224])
    made.add_argument("--queues", nargs="*", type=int, default=[4096, 65_536, 262_144])
    made.add_argument("--batches", nargs="*", type=int, default=[16, 64])
    made.add_argument("--sizes", nargs="*", type=int, default=[96, 160, 224, 448])
    made.add_argument("--out", type=Path, help="write everything as JSON")
    return made


def _three(text: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in text.split(","))
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"'{text}' is not N,K,C, as in 6272,65536,256")
    return numbers


def main(arguments: list[str]) -> None:
    """Run what was asked for, print tables, write JSON."""
    options = parser().parse_args(arguments)
    results = surroundings()
    results["hardware"]["capability"] = torch.backends.cpu.get_cpu_capability()
    print(json.dumps(results))
    with tempfile.TemporaryDirectory() as folder:
        for what in options.what:
            results[what] = BENCHMARKS[what](options, Path(folder))
            if options.out is not None:
                options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
