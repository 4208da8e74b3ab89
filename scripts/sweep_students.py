"""Which timm architectures can be students: each one built, trained, exported and loaded again.

    python scripts/sweep_students.py --out recipes/students.md

Filter: every name of ``timm.list_models()`` with fewer than 30 M parameters without a classifier.
Each is taken at 224 and at 96 px through the code that ``recipes/distill.py`` runs: build, pixel
grid, freeze what the pixels do not reach, one training step, export, load from the export's folder,
and as ``features_only`` where timm has it. It works, or is refused with a message; anything else is
a crash. It took 73 minutes on two cores that did other work beside it. ``--results`` keeps every
outcome, and a second call goes on.
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
from pcd_hub.method.distiller import Distiller, freeze_unreached
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
_SECONDS = 900  # a case that takes longer hangs


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one architecture at one size."""

    arch: str
    image_size: int
    parameters: int
    verdict: str
    """works, refused, crash, or "too large": then at size 0."""
    message: str = ""
    grid: tuple[int, ...] = ()
    """Channels, height, width of the pixels."""
    features_only: str = ""
    """works, "not in timm", or what is wrong."""
    untrained: int = 0
    """Parameters behind the last map, which distillation does not reach."""


def try_all_sizes(arch: str, sizes: tuple[int, ...]) -> list[Outcome]:
    """``try_student`` at each size, or the one outcome that the architecture is too large."""
    parameters = _count_parameters(arch)
    if parameters >= MAX_PARAMETERS:
        return [Outcome(arch=arch, image_size=0, parameters=parameters, verdict="too large")]
    return [_in_time(arch, size, parameters) for size in sizes]


def _count_parameters(arch: str) -> int:
    return sum(parameter.numel() for parameter in build_skeleton(arch).parameters())


def try_student(arch: str, image_size: int, parameters: int) -> Outcome:
    """Everything ``recipes/distill.py`` does with a student, once."""
    outcome = partial(Outcome, arch=arch, image_size=image_size, parameters=parameters)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return outcome(verdict="works", **_life(arch, image_size, Path(scratch)))
    except PCDHubError as error:
        return outcome(verdict="refused", message=str(error))
    except Exception as error:  # what else happens is what we look for
        message = f"{type(error).__name__}: {first_line(error)[:200]}"
        return outcome(verdict="crash", message=message)


def _life(arch: str, image_size: int, scratch: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    student = build_backbone(arch, image_size=image_size)
    unreached = freeze_unreached(student, image_size=image_size)
    pixels = _train_once(student, image_size)
    record = WeightRecord.trial(arch)
    state = student.model.state_dict()
    folder = export_weight(state, record, scratch / record.name, image_size=image_size)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    if any(not torch.equal(value, state[key]) for key, value in again.state_dict().items()):
        raise AssertionError("local-dir: gave other weights")
    counts = dict(student.named_parameters())
    return {
        "grid": tuple(pixels.shape[1:]),
        "untrained": sum(counts[name].numel() for name in unreached),
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
        pixels = student.eval()(images)
    student.train()
    teacher_pixels = torch.randn(2, 16, *pixels.shape[2:])
    loss = distiller(images, teacher_pixels, torch.randn(8, 16))
    loss.backward()
    silent = [
        name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None
    ]
    if silent:
        raise AssertionError(f"{len(silent)} parameters without a gradient, first {silent[0]}")
    optimizer.step()
    return pixels


def _features_only(folder: Path, image_size: int) -> str:
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True)
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError, TypeError) as error:
        return "not in timm" if _timm_lacks_it(folder) else first_line(error)
    maps = model.eval()(torch.rand(1, 3, image_size, image_size))
    return "works" if len(maps) else "no maps"


def _timm_lacks_it(folder: Path) -> bool:
    """Whether the architecture has no features_only at random start either."""
    config = json.loads((folder / "config.json").read_text())
    arguments = config.get("model_args", {})
    try:
        timm.create_model(config["architecture"], pretrained=False, features_only=True, **arguments)
    except Exception:  # timm raises anything here
        return True
    return False


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def _in_time(arch: str, image_size: int, parameters: int) -> Outcome:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {_SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        return try_student(arch, image_size, parameters)
    finally:
        signal.alarm(0)


def sweep(archs: list[str], sizes: tuple[int, ...], results: Path, *, jobs: int) -> list[Outcome]:
    """Try every architecture that ``results`` does not hold yet; all outcomes of small ones."""
    known = _read(results)
    missing = [
        arch
        for arch in archs
        if (arch, 0) not in known and any((arch, size) not in known for size in sizes)
    ]
    print(f"{len(archs)} architectures, {len(missing)} to do", flush=True)
    with ProcessPoolExecutor(jobs, initializer=_prepare_worker) as pool, results.open("a") as log:
        for future in as_completed([pool.submit(try_all_sizes, arch, sizes) for arch in missing]):
            for outcome in future.result():
                known[outcome.arch, outcome.image_size] = outcome
                log.write(json.dumps(asdict(outcome)) + "\n")
                log.flush()
                if outcome.verdict in {"refused", "crash"}:
                    say = (outcome.arch, outcome.image_size, outcome.verdict, outcome.message)
                    print(*say, flush=True)
    return [known[arch, size] for arch in archs for size in sizes if (arch, size) in known]


def _read(results: Path) -> dict[tuple[str, int], Outcome]:
    lines = results.read_text().splitlines() if results.exists() else []
    outcomes = (Outcome(**json.loads(line)) for line in lines)
    return {(outcome.arch, outcome.image_size): outcome for outcome in outcomes}


def table(outcomes: Iterable[Outcome]) -> str:
    """The Markdown page."""
    outcomes = list(outcomes)
    lines = [
        "# Students",
        "",
        (
            "Written by `scripts/sweep_students.py`; do not edit. Every architecture of "
            f"`timm.list_models()` with fewer than {MAX_PARAMETERS // 1_000_000} M parameters "
            "(without a classifier), at random start: built, put on a pixel grid, trained one "
            "step, exported, loaded from `local-dir:`, and as `features_only` where timm has it."
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
            "`untrained`: parameters behind the last map (MobileNetV3's `conv_head`, ConvNeXt's "
            "head norm), which keep their random start; the weight's record names them. Use those "
            "weights by `features_only` or `forward_features`."
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
    return [f"{size} px{what}" for size in sizes for what in (": pixels", ": features_only")]


def _row(arch: str, by_size: dict[int, Outcome]) -> str:
    cells = []
    for size in sorted(by_size, reverse=True):
        outcome = by_size[size]
        channels, *grid = outcome.grid or (0,)
        pixels = f"{channels} x {' x '.join(map(str, grid))}" if grid else ""
        cells += [pixels or f"{outcome.verdict}: {outcome.message}", outcome.features_only]
    any_outcome = next(iter(by_size.values()))
    untrained = max(outcome.untrained for outcome in by_size.values())
    share = f"{untrained / 1e6:.2f} M" if untrained else ""
    escaped = " | ".join(cell.replace("|", "\\|") for cell in cells)
    return f"| {arch} | {any_outcome.parameters / 1e6:.1f} | {share} | {escaped} |"


def main() -> None:
    """Sweep, write the page, and fail if anything crashed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pattern", default="*", help="of timm.list_models")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=Path("runs/students.jsonl"))
    parser.add_argument("--out", type=Path, help="the page to write; none if not given")
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    archs = timm.list_models(given.pattern)
    outcomes = sweep(archs, tuple(given.sizes), given.results, jobs=given.jobs)
    if given.out:
        given.out.write_text(table(outcomes))
    verdicts = [outcome.verdict for outcome in outcomes]
    print({verdict: verdicts.count(verdict) for verdict in ("works", "refused", "crash")})
    sys.exit(1 if "crash" in verdicts else 0)


if __name__ == "__main__":
    main()
