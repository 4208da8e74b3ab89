"""Test which timm architectures can be students: build, train, export and load each of them.

    python scripts/sweep_students.py --out recipes/students.md

The sweep covers every name of ``timm.list_models()`` with fewer than 30 M parameters without the
classifier, at 224 and 96 px. Each runs through the code of ``recipes/distill.py``: build the
backbone and its feature map, freeze unused parameters, take one training step, export, and load the
export, also with ``features_only`` if timm supports it. Outcomes: the architecture works, is
rejected with an error message, or crashes. The sweep took 73 minutes on two shared cores.
``--results`` saves every outcome, and a second call continues from it.
"""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import timm
import torch

import pcd_hub
from pcd_hub.errors import PCDHubError, first_line
from pcd_hub.method.distiller import Distiller, freeze_unused_parameters
from pcd_hub.method.heads import HeadLayout, student_head
from pcd_hub.method.loss import pixel_info_nce
from pcd_hub.models.entries import build_skeleton
from pcd_hub.train.configs.distill import OptimConfig, SpeedConfig
from pcd_hub.train.networks import build_backbone
from pcd_hub.train.optimizers import build_optimizer
from pcd_hub.weights.export import export_weight
from pcd_hub.weights.record import WeightRecord

MAX_PARAMETERS = 30_000_000
SIZES = (224, 96)
_TIMEOUT_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result for one architecture at one image size."""

    arch: str
    image_size: int
    parameters: int
    verdict: str
    """works, refused, crash, or "too large" (with image size 0)."""
    message: str = ""
    grid: tuple[int, ...] = ()
    """Channels, height, width of the last feature map."""
    features_only: str = ""
    """works, "not in timm", or an error message."""
    untrained: int = 0
    """Number of parameters after the last feature map, which distillation does not train."""


def try_all_sizes(arch: str, sizes: tuple[int, ...]) -> list[Outcome]:
    """Test an architecture at each size, or return one outcome if it is too large."""
    parameters = _count_parameters(arch)
    if parameters >= MAX_PARAMETERS:
        return [Outcome(arch=arch, image_size=0, parameters=parameters, verdict="too large")]
    return [_try_with_timeout(arch, size, parameters) for size in sizes]


def _count_parameters(arch: str) -> int:
    return sum(parameter.numel() for parameter in build_skeleton(arch).parameters())


def try_student(arch: str, image_size: int, parameters: int) -> Outcome:
    """Run every step of ``recipes/distill.py`` on a student once."""
    outcome = partial(Outcome, arch=arch, image_size=image_size, parameters=parameters)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return outcome(verdict="works", **_run_all_steps(arch, image_size, Path(scratch)))
    except PCDHubError as error:
        return outcome(verdict="refused", message=str(error))
    except Exception as error:  # any other exception counts as a crash
        message = f"{type(error).__name__}: {first_line(error)[:200]}"
        return outcome(verdict="crash", message=message)


def _run_all_steps(arch: str, image_size: int, scratch: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    student = build_backbone(arch, image_size=image_size)
    images = torch.zeros(2, 3, image_size, image_size)
    untrained = freeze_unused_parameters(student, images)
    feature_map = _train_once(student, image_size)
    record = WeightRecord.trial(arch)
    state = student.model.state_dict()
    folder = export_weight(state, record, scratch / record.name, image_size=image_size)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    if any(not torch.equal(value, state[key]) for key, value in loaded.state_dict().items()):
        raise AssertionError("local-dir: loaded other weights than were exported")
    parameters = dict(student.named_parameters())
    return {
        "grid": tuple(feature_map.shape[1:]),
        "untrained": sum(parameters[name].numel() for name in untrained),
        "features_only": _features_only(folder, image_size),
    }


def _train_once(student: torch.nn.Module, image_size: int) -> torch.Tensor:
    images = torch.rand(2, 3, image_size, image_size)
    head = student_head(
        student.num_channels,  # pyright: ignore[reportArgumentType]
        HeadLayout(mlps=((64, 16),), hidden_bias=False, output_bias=False),
    )
    distiller = Distiller(student, head, loss=partial(pixel_info_nce, temperature=0.2))
    optimizer = build_optimizer(distiller, OptimConfig(name="adamw"), SpeedConfig())
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    with torch.no_grad():
        feature_map = student.eval()(images)
    student.train()
    teacher_map = torch.randn(2, 16, *feature_map.shape[2:])
    loss = distiller(images, teacher_map, torch.randn(8, 16))
    loss.backward()
    without_gradient = [
        name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None
    ]
    if without_gradient:
        count, first = len(without_gradient), without_gradient[0]
        raise AssertionError(f"{count} parameters without a gradient, first {first}")
    optimizer.step()
    return feature_map


def _features_only(folder: Path, image_size: int) -> str:
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True)
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError, TypeError) as error:
        return "not in timm" if _is_unsupported_by_timm(folder) else first_line(error)
    maps = model.eval()(torch.rand(1, 3, image_size, image_size))
    return "works" if len(maps) else "no maps"


def _is_unsupported_by_timm(folder: Path) -> bool:
    """Check whether ``features_only`` fails for the randomly initialised architecture too."""
    config = json.loads((folder / "config.json").read_text())
    arguments = config.get("model_args", {})
    try:
        timm.create_model(config["architecture"], pretrained=False, features_only=True, **arguments)
    except Exception:  # timm raises various types here
        return True
    return False


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def _try_with_timeout(arch: str, image_size: int, parameters: int) -> Outcome:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {_TIMEOUT_SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_TIMEOUT_SECONDS)
    try:
        return try_student(arch, image_size, parameters)
    finally:
        signal.alarm(0)


def sweep(archs: list[str], sizes: tuple[int, ...], results: Path, *, jobs: int) -> list[Outcome]:
    """Test every architecture that is not in ``results``; return all outcomes at ``sizes``."""
    known = _read_results(results)
    missing = [
        arch
        for arch in archs
        if (arch, 0) not in known and any((arch, size) not in known for size in sizes)
    ]
    print(f"{len(archs)} architectures, {len(missing)} to test", flush=True)
    with ProcessPoolExecutor(jobs, initializer=_prepare_worker) as pool, results.open("a") as log:
        for future in as_completed([pool.submit(try_all_sizes, arch, sizes) for arch in missing]):
            for outcome in future.result():
                known[outcome.arch, outcome.image_size] = outcome
                log.write(json.dumps(asdict(outcome)) + "\n")
                log.flush()
                if outcome.verdict in {"refused", "crash"}:
                    print(
                        outcome.arch,
                        outcome.image_size,
                        outcome.verdict,
                        outcome.message,
                        flush=True,
                    )
    return [known[arch, size] for arch in archs for size in sizes if (arch, size) in known]


def _read_results(results: Path) -> dict[tuple[str, int], Outcome]:
    lines = results.read_text().splitlines() if results.exists() else []
    outcomes = (Outcome(**json.loads(line)) for line in lines)
    return {(outcome.arch, outcome.image_size): outcome for outcome in outcomes}


def table(outcomes: Iterable[Outcome]) -> str:
    """Format the Markdown page."""
    outcomes = list(outcomes)
    lines = [
        "# Students",
        "",
        (
            "Written by `scripts/sweep_students.py`; do not edit. Every architecture in "
            f"`timm.list_models()` with fewer than {MAX_PARAMETERS // 1_000_000} M parameters "
            "(without its classifier) was tried as a student, at random initialisation: built, "
            "checked for a spatial feature map, trained for one step, exported, loaded through "
            "`local-dir:` and, where timm supports it, with `features_only`."
        ),
        f"pcd_hub {pcd_hub.__version__}, timm {timm.__version__}, torch {torch.__version__}.",
        "",
        "| image size | architectures | work | refused with a message | crash |",
        "|---|---|---|---|---|",
    ]
    for size in sorted({outcome.image_size for outcome in outcomes}, reverse=True):
        verdicts = [outcome.verdict for outcome in outcomes if outcome.image_size == size]
        work = verdicts.count("works")
        lines.append(
            f"| {size} | {len(verdicts)} | {work} ({100 * work / len(verdicts):.1f} %) | "
            f"{verdicts.count('refused')} | {verdicts.count('crash')} |"
        )
    lines += [
        "",
        (
            "`untrained`: parameters after the last feature map (MobileNetV3's `conv_head`, "
            "ConvNeXt's head norm). They keep their random initialisation, and the weight's record "
            "lists them; use these weights with `features_only` or `forward_features`."
        ),
        "",
        "| architecture | M parameters | untrained | " + " | ".join(_columns(outcomes)) + " |",
        "|---|---|---|" + "---|" * len(_columns(outcomes)),
    ]
    by_arch: dict[str, dict[int, Outcome]] = {}
    for outcome in outcomes:
        by_arch.setdefault(outcome.arch, {})[outcome.image_size] = outcome
    lines += [_row(arch, by_arch[arch]) for arch in sorted(by_arch)]
    return "\n".join(lines) + "\n"


def _columns(outcomes: list[Outcome]) -> list[str]:
    sizes = sorted({outcome.image_size for outcome in outcomes}, reverse=True)
    return [f"{size} px: {kind}" for size in sizes for kind in ("feature map", "features_only")]


def _row(arch: str, by_size: dict[int, Outcome]) -> str:
    cells = []
    for size in sorted(by_size, reverse=True):
        outcome = by_size[size]
        channels, *grid = outcome.grid or (0,)
        shape = f"{channels} x {' x '.join(map(str, grid))}" if grid else ""
        cells += [shape or f"{outcome.verdict}: {outcome.message}", outcome.features_only]
    any_outcome = next(iter(by_size.values()))
    untrained = max(outcome.untrained for outcome in by_size.values())
    share = f"{untrained / 1e6:.2f} M" if untrained else ""
    escaped = " | ".join(cell.replace("|", "\\|") for cell in cells)
    return f"| {arch} | {any_outcome.parameters / 1e6:.1f} | {share} | {escaped} |"


def main() -> None:
    """Run the sweep and write the page; the exit status is 1 if an architecture crashed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pattern", default="*", help="pattern for timm.list_models")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=Path("runs/students.jsonl"))
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    archs = timm.list_models(options.pattern)
    outcomes = sweep(archs, tuple(options.sizes), options.results, jobs=options.jobs)
    if options.out:
        options.out.write_text(table(outcomes))
    verdicts = [outcome.verdict for outcome in outcomes]
    print({verdict: verdicts.count(verdict) for verdict in ("works", "refused", "crash")})
    sys.exit(1 if "crash" in verdicts else 0)


if __name__ == "__main__":
    main()
