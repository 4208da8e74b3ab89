"""The files that scripts/gpu_check.py leaves: report, table, and the packed student."""

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

LOG_BYTES = 1_000_000
"""Of the output of one part, for the log."""
FILE_BYTES = 15 * 2**20
"""Of a file of the packed student."""
MAX_FILES = 5
"""Of the packed student; with report, table and log there are 8."""
_LEFT_OUT = {"checkpoints", "lock"}


def pack_run(run: Path, output_dir: Path) -> dict[str, Any]:
    """Pack a run without its checkpoints into ``student.tar.00`` ..., each of ``FILE_BYTES``.

    A run that needs more than ``MAX_FILES`` is packed without pictures, or else not at all.
    """
    for old in output_dir.glob("student.tar.*"):
        old.unlink()
    if not run.is_dir():
        return {"files": [], "note": "no run"}
    note = ""
    for left_out in (_LEFT_OUT, _LEFT_OUT | {"pictures"}):
        archive = run.with_name("student.tar")
        with tarfile.open(archive, "w") as tar:
            for path in sorted(run.iterdir()):
                if path.name not in left_out:
                    tar.add(path, arcname=f"student/{path.name}")
        if archive.stat().st_size <= MAX_FILES * FILE_BYTES:
            files = [path.name for path in split_file(archive, output_dir)]
            has_weight = any(run.glob("export*"))
            note = "" if has_weight else "without a weight: the run did not end"
            return {"files": files, "note": note, "join": "cat student.tar.* | tar x"}
        note = f"not packed: {archive.stat().st_size / 2**20:.0f} MiB"
    return {"files": [], "note": note}


def split_file(path: Path, folder: Path) -> Iterator[Path]:
    """Copy a file in pieces of ``FILE_BYTES`` into the folder, and yield their paths."""
    with path.open("rb") as file:
        number = 0
        while piece := file.read(FILE_BYTES):
            target = folder / f"{path.name}.{number:02}"
            target.write_bytes(piece)
            yield target
            number += 1


def write_report(report: Mapping[str, Any], output_dir: Path) -> None:
    """Write gpu_check.json and gpu_check.md."""
    (output_dir / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    (output_dir / "gpu_check.md").write_text(table(report))


def table(report: Mapping[str, Any]) -> str:
    """Return the report as one Markdown table."""
    lines = ["| part | status | seconds | result |", "|---|---|---|---|"]
    for name, part in report["parts"].items():
        rows = list(_rows(name, part["result"])) if part["result"] else []
        for number, text in enumerate(rows or [""]):
            first = (name, part["status"].replace("|", "/"), f"{part['seconds']:.0f}")
            cells = (*(first if number == 0 else ("", "", "")), text)
            lines.append("| " + " | ".join(cells) + " |")
    student = report["student"]
    if student["files"]:
        join = student["join"].replace("|", "\\|")
        text = f"{len(student['files'])} files, join with `{join}`"
        lines.append(f"| student | {student['note'] or 'ok'} | | {text} |")
    return "\n".join(lines) + "\n"


def _rows(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of a part; a result with unexpected contents is reported as such."""
    try:
        yield from list(_TEXTS[name.partition(" at ")[0]](result))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        yield f"incomplete result ({type(error).__name__}: {error})"


def _machine(result: Mapping[str, Any]) -> Iterator[str]:
    device = result["device"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    yield f"{device['name']}, {result['cores']} CPU cores, {_gib(result['memory_bytes'])} memory"
    yield versions
    shared, disk = result["shared_memory"], result["disk"]
    yield (
        f"shared memory {_gib(shared['total_bytes'])}; disk writes "
        f"{disk['write_bytes_per_s'] / 1e6:.0f} MB/s, reads {disk['read_bytes_per_s'] / 1e6:.0f}"
    )
    rates = (f"{name} {rate / 1e12:.3g}" for name, rate in result["matmul_flop_per_s"].items())
    yield f"matrix product: {', '.join(rates)} TFLOP/s"
    if result["missing"]:
        yield f"not installed: {', '.join(result['missing'])}"


def _step(result: Mapping[str, Any]) -> Iterator[str]:
    for name, row in result["step"]["variants"].items():
        split = ", ".join(f"{key} {1000 * value:.3g}" for key, value in row["split"].items())
        yield (
            f"{name}: {row['images_per_s']:.4g} images/s, {row['flop_per_s'] / 1e12:.3g} TFLOP/s, "
            f"{100 * row['share_of_matmul_rate']:.0f} % of the {row['precision']} matrix rate; "
            f"without waiting for data {row['images_per_s_without_data_wait']:.4g} images/s, "
            f"{100 * row['share_of_matmul_rate_without_data_wait']:.0f} %; ms a step: {split}; "
            f"peak {_gib(row['peak_bytes'])}"
        )


def _loss(result: Mapping[str, Any]) -> Iterator[str]:
    for case in result["loss"]["cases"]:
        dense, ours = case["dense"], case["ours"]
        flop = 4 * case["n"] * case["k"] * case["c"]
        yield (
            f"{case['n']} x {case['k']} x {case['c']}: {1000 * ours['seconds']:.3g} ms, "
            f"{flop / ours['seconds'] / 1e12:.3g} TFLOP/s, "
            f"{dense['seconds'] / ours['seconds']:.2f} x dense; error of the gradient "
            f"{ours['gradient_error']:.1e}, dense {dense['gradient_error']:.1e}"
        )


def _data(result: Mapping[str, Any]) -> Iterator[str]:
    for case in result["data"]["results"]:
        rates = (f"{k} {1 / v:.0f}" for k, v in case["core_seconds_per_image"].items())
        yield f"{case['image_size']} px, images/s and core: {', '.join(rates)}"


def _tests(result: Mapping[str, Any]) -> Iterator[str]:
    outcomes = [test["outcome"] for test in result["tests"]]
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    yield ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no tests"
    for test in result["tests"]:
        facts = ", ".join(f"{key} {value}" for key, value in test["properties"].items())
        if test["outcome"] == "failed" or facts:
            text = facts or test["message"]
            yield f"{test['outcome']}: {test['name']}: {text}".replace("|", "/").replace("\n", " ")


def _training(result: Mapping[str, Any]) -> Iterator[str]:
    texts = [f"{result['name'] or 'no weight'}, {result['steps']} steps"]
    if loss := result.get("loss"):
        texts.append(f"loss {loss['first']:.3f} -> {loss['last']:.3f}")
    if rate := result.get("images_per_s"):
        texts.append(f"{rate['last']:.4g} images/s")
    if wait := result.get("data_wait"):
        texts.append(f"waits for data {100 * wait['last']:.0f} % of the time")
    yield ", ".join(texts)


_TEXTS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "machine": _machine,
    "step": _step,
    "compiled step": _step,
    "loss": _loss,
    "data": _data,
    "tests": _tests,
    "training": _training,
}


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
