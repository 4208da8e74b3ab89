"""Benchmark the training step against a plain reference, and its parts.

    python scripts/benchmark.py step --image-size 96 --batch-size 32
    python scripts/benchmark.py loss data models growth --out benchmark.json

Images are synthetic unless ``--images DIR`` is given; teachers and students are randomly
initialised. Compare only numbers from one run, because absolute times depend on the load of the
machine. Each step is measured in its own process, recipe and reference in turn; the table shows
medians and half the interquartile range.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
    save_synthetic_images,
)
from benchmark_step import EXTRAS, STAGES, SWITCHES, StepCase, plain_network
from measuring import (
    DEVICE,
    compare_with_rate,
    fastest_precision,
    matmul_rates,
    median_and_spread,
    print_table,
)
from pcd_hub.data.sources.files import ImageFiles
from pcd_hub.models.grid import pixel_grid
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train.run_folder.provenance import provenance

_ADVICE = {
    "data wait": "more --data.num-workers, smaller files, or a faster disk",
    "teacher": "a smaller teacher, or --teacher.image-size below the student's",
    "student": "a smaller student, or smaller images",
    "backward": "a smaller student, or smaller images",
    "loss": "a shorter --method.queue-length, or smaller images",
    "optimizer": "a larger --optim.global-batch-size",
}


def save_random_teacher(architecture: str, folder: Path) -> Path:
    """Save a randomly initialised teacher: ResNets with MoCo v3's head, others without."""
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


def list_images(folder: Path, count: int, file: Path) -> Path:
    """List ``count`` images of the folder, repeated if there are fewer."""
    paths = [str((folder / path).absolute()) for path in ImageFiles.from_folder(folder).paths()]
    file.write_text("\n".join((paths * (count // len(paths) + 1))[:count]))
    return file


def step_flops(case: StepCase) -> dict[str, float]:
    """Count the FLOP per image in two views, where one multiply-add is two FLOP."""
    teacher = load_teacher(f"local-dir:{case.teacher}", image_size=case.image_size)
    backbone = timm.create_model(case.student, num_classes=0)
    student = pixel_grid(backbone, image_size=case.image_size)
    network = plain_network(student, teacher.num_channels)
    images = torch.zeros(2, 3, case.image_size, case.image_size)
    flops = []
    for run in (
        lambda: teacher.head(teacher.grid(images)),
        lambda: network(images),
        lambda: network(images).sum().backward(),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        flops.append(float(counter.get_total_flops()))
    num_elements = network(images).numel()  # pixels x channels
    return {
        "teacher": flops[0],
        "student": flops[1],
        "backward": flops[2] - flops[1],
        "loss": 4.0 * num_elements * case.queue_length,
    }


def run_step(kind: str, case: StepCase, steps: int, timeline: Path | None = None) -> dict[str, Any]:
    """Measure one case in a new process."""
    script = Path(__file__).with_name("benchmark_step.py")
    command = [sys.executable, str(script), kind, json.dumps(dataclasses.asdict(case))]
    command += ["--steps", str(steps)] + (["--timeline", str(timeline)] if timeline else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{kind} {case} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def benchmark_step(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Compare the recipe's step with the plain one, and with single optimisations off or on.

    Yields the result of the rows that are measured, after every process.
    """
    case = step_case(options, folder)
    variants = step_variants(options, case)
    runs: dict[str, list[dict[str, Any]]] = {}
    flops, rates = step_flops(case), matmul_rates()
    result = {
        "case": dataclasses.asdict(case) | {"teacher": options.teacher},
        "flop_per_image": flops,
        "matmul_flop_per_s": rates,
        "variants": {},
    }
    for name, (kind, variant) in itertools.chain(*[variants.items()] * options.repeats):
        timeline = options.timeline if name == "recipe" else None
        started = time.perf_counter()
        runs.setdefault(name, []).append(run_step(kind, variant, options.steps, timeline))
        row = summarise(runs[name], case.batch_size)
        taken = time.perf_counter() - started
        print(f"{name}: {row['images_per_s']:.4g} images/s, measured in {taken:.0f} s", flush=True)
        precision = fastest_precision(rates, bf16=kind == "recipe" and "bf16" not in variant.off)
        of_row = flops | ({"teacher": 0.0} if "cached" in variant.also else {})
        result["variants"][name] = row | compare_with_rate(row, of_row, precision, rates[precision])
        yield result
    _print_steps(result["variants"], flops, case)


def step_variants(options: argparse.Namespace, case: StepCase) -> dict[str, tuple[str, StepCase]]:
    """Return the kind of step and the case of every row, by name."""
    off = tuple(sorted({*options.off, *(("bf16",) if not options.bf16 else ())}))
    variants = {"recipe": ("recipe", dataclasses.replace(case, off=off))}
    for extras in options.also:
        also = dataclasses.replace(case, off=off, also=tuple(extras.split("+")))
        variants[f"recipe, {extras}"] = ("recipe", also)
    variants["plain"] = ("plain", case)
    for switch in options.without:
        without = dataclasses.replace(case, off=tuple(sorted({*off, switch})))
        variants[f"recipe without {switch}"] = ("recipe", without)
    return variants


def summarise(runs: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Summarise all steps of all processes."""
    times = [seconds for run in runs for seconds in run["seconds"]]
    median, spread = median_and_spread(times)
    return {
        "images_per_s": batch_size / median,
        "seconds": median,
        "spread": spread,
        "split": {s: statistics.median(run["split"][s] for run in runs) for s in STAGES},
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


def _print_steps(summary: dict[str, Any], flops: dict[str, float], case: StepCase) -> None:
    plain = summary["plain"]
    print_table(
        ["step", "images/s", "speed", "peak memory", "", "TFLOP/s", "of the matmul rate", *STAGES],
        [
            [
                name,
                f"{row['images_per_s']:.2f} ± {100 * row['spread'] / row['seconds']:.0f} %",
                f"{row['images_per_s'] / plain['images_per_s']:.2f} x",
                f"{row['peak_bytes'] / 2**30:.2f} GiB",
                f"{row['peak_bytes'] / plain['peak_bytes']:.2f} x",
                f"{row['flop_per_s'] / 1e12:.3g}",
                f"{100 * row['share_of_matmul_rate']:.0f} % ({row['precision']})",
                *(f"{1000 * row['split'][stage]:.0f} ms" for stage in STAGES),
            ]
            for name, row in summary.items()
        ],
    )
    split = summary["recipe"]["split"]
    bottleneck = max(split, key=lambda stage: split[stage])
    shares = [
        f"{stage} {100 * share:.0f} %"
        for stage, share in summary["recipe"]["share_of_matmul_rate_by_stage"].items()
    ]
    print(
        f"\n{sum(flops.values()) / 1e9:.1f} GFLOP per image in two views, {case.batch_size} images "
        f"a step. Share of the rate of a matrix product: {', '.join(shares)}.\n"
        f"Bottleneck: {bottleneck}. Try {_ADVICE[bottleneck]}."
    )


def benchmark_growth(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Measure the recipe's step with larger queue, batch and image, one at a time."""
    base = dataclasses.replace(step_case(options, folder), off=() if options.bf16 else ("bf16",))
    cases = [("queue", dataclasses.replace(base, queue_length=k)) for k in options.queues]
    cases += [("batch", dataclasses.replace(base, batch_size=b)) for b in options.batches]
    cases += [("image", dataclasses.replace(base, image_size=s)) for s in options.sizes]
    results, rows = [], []
    for varied, case in cases:
        count = case.batch_size * (options.steps + 8)
        images = list_images(_image_folder(options, folder), count, folder / "growth.txt")
        case = dataclasses.replace(case, images=str(images))  # noqa: PLW2901
        summary = summarise([run_step("recipe", case, options.steps)], case.batch_size)
        results.append({"grows": varied, **dataclasses.asdict(case), **summary})
        yield {"results": results}
        rows.append(
            [
                varied,
                f"{case.queue_length}",
                f"{case.batch_size}",
                f"{case.image_size} px",
                f"{summary['images_per_s']:.2f}",
                f"{1000 * summary['split']['loss']:.0f} ms",
                f"{summary['peak_bytes'] / 2**30:.2f} GiB",
            ]
        )
    print_table(["varied", "queue", "batch", "image", "images/s", "loss", "peak memory"], rows)


def step_case(options: argparse.Namespace, folder: Path) -> StepCase:
    """Build the case that the command line describes."""
    count = options.batch_size * (options.steps + 8)
    return StepCase(
        teacher=str(save_random_teacher(options.teacher, folder / f"teacher_{options.teacher}")),
        images=str(list_images(_image_folder(options, folder), count, folder / "images.txt")),
        student=options.student,
        image_size=options.image_size,
        batch_size=options.batch_size,
        queue_length=options.queue_length,
        compile=options.compile,
    )


def _image_folder(options: argparse.Namespace, folder: Path) -> Path:
    if options.images is not None:
        return options.images
    synthetic = folder / "synthetic"
    if synthetic.exists():
        return synthetic
    return save_synthetic_images(synthetic, options.synthetic_images)


BENCHMARKS = {
    "step": benchmark_step,
    "loss": benchmark_loss,
    "data": benchmark_data,
    "models": benchmark_models,
    "growth": benchmark_growth,
}


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmarks", nargs="+", choices=list(BENCHMARKS))
    parser.add_argument("--teacher", default="resnet50", help="a timm architecture")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument(
        "--images", type=Path, help="folder; synthetic JPEGs of 500 x 375 if not given"
    )
    parser.add_argument("--synthetic-images", type=int, default=64, help="number of them")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--queue-length", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=5, help="timed steps per process")
    parser.add_argument("--repeats", type=int, default=3, help="processes per row")
    parser.add_argument(
        "--off",
        nargs="*",
        default=[],
        choices=SWITCHES,
        help="optimisations to switch off in every row of the recipe",
    )
    parser.add_argument(
        "--without",
        nargs="*",
        default=[],
        choices=SWITCHES,
        help="optimisations to switch off in a row of their own",
    )
    parser.add_argument(
        "--also",
        nargs="*",
        default=[],
        choices=["+".join(c) for n in (1, 2) for c in itertools.combinations(EXTRAS, n)],
        help="rows with images that stay on the device, with the teacher's cache, or with both",
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=DEVICE.type == "cuda"
    )
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--timeline", type=Path, help="trace file to write, for chrome://tracing")
    parser.add_argument(
        "--loss-cases", nargs="*", type=_parse_sizes, default=LOSS_CASES, metavar="N,K,C"
    )
    parser.add_argument("--data-sizes", nargs="*", type=int, default=[96, 224])
    parser.add_argument("--queues", nargs="*", type=int, default=[4096, 65_536, 262_144])
    parser.add_argument("--batches", nargs="*", type=int, default=[16, 64])
    parser.add_argument("--sizes", nargs="*", type=int, default=[96, 160, 224, 448])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def _parse_sizes(text: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in text.split(","))
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"'{text}': expected N,K,C, for example 6272,65536,256")
    return numbers


def main(arguments: list[str]) -> None:
    """Run the benchmarks, print tables and write JSON."""
    options = build_parser().parse_args(arguments)
    results = provenance()
    results["hardware"]["capability"] = torch.backends.cpu.get_cpu_capability()
    print(json.dumps(results))
    with tempfile.TemporaryDirectory() as folder:
        for name in options.benchmarks:
            for result in BENCHMARKS[name](options, Path(folder)):
                results[name] = result
                if options.out is not None:  # after every row: the next one may not end in time
                    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
