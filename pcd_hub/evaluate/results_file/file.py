"""Read a results file, and append to it."""

import stat
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from pcd_hub.data.sources.uris import is_dir, is_file
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.evaluate.models import known_sha256
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.evaluate.results_file.line import ResultLine, evaluation_of, parse_line
from pcd_hub.files.read import read_bounded
from pcd_hub.files.writable import check_writable, writing
from pcd_hub.files.write import atomic_write

SUFFIX = ".jsonl"

_MAX_BYTES = 2**28
_LOCK_SECONDS = 60.0
_REMEDY = "name another --append"


def read_results(file: Path) -> dict[str, ResultLine]:
    """Read a results file.

    Returns:
        The results by their place, such as "results.jsonl, line 3".

    Raises:
        DataError: If it cannot be read, or a line is not a result.
    """
    return _parsed(_content(file), file)


def check_new(file: Path, table: Evaluation, models: Sequence[str]) -> None:
    """Check that the results of models can be appended, as far as it is known before they are run.

    Args:
        file: The results file; it need not exist.
        table: The table to be filled.
        models: Names of the models.

    Raises:
        ConfigError: If the file has another suffix, cannot be written, or has a result of one of
            the models.
        DataError: If the file is not a results file.
    """
    if file.suffix != SUFFIX or is_dir(file):
        raise ConfigError(f"--append {file}: expected a file whose name ends in {SUFFIX}")
    check_writable(file.resolve().parent, what="the folder of --append", remedy=_REMEDY)
    found = read_results(file) if is_file(file) else {}
    for name in models:
        if place := place_of(found, table, name):
            raise _duplicate(place, name, table.dataset)


def place_of(found: dict[str, ResultLine], table: Evaluation, name: str) -> str | None:
    """Return the place of a model's result in the same evaluation; None if there is none."""
    return _place(found, table, known_sha256(name) or name)


def _place(found: dict[str, ResultLine], of: Evaluation | ResultLine, identity: str) -> str | None:
    wanted = (evaluation_of(of), identity)
    same = (p for p, one in found.items() if (evaluation_of(one), one.identity) == wanted)
    return next(same, None)


def append_result(file: Path, line: ResultLine) -> None:
    """Append a result atomically: readers see the file without it or with it.

    Raises:
        ConfigError: If the file has a result of the same model, images and protocol, or stays
            locked by another process.
        DataError: If the file is not a results file.
        WeightError: If it cannot be written.
    """
    target, raw = file.resolve(), line.encode()  # the file behind a link is replaced, not the link
    with writing(file, remedy=_REMEDY):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(target.with_name(f".{target.name}.lock"), timeout=_LOCK_SECONDS):
                _append(target, line, raw, file)
        except Timeout:
            raise ConfigError(
                f"--append {file} is locked by another process for {_LOCK_SECONDS:g} s; wait for "
                "it, or name another file"
            ) from None


def _append(target: Path, line: ResultLine, raw: bytes, file: Path) -> None:
    exists = target.is_file()
    before = _content(target) if exists else b""
    if place := _place(_parsed(before, file), line, line.identity):
        raise _duplicate(place, line.model, line.dataset)
    if before and not before.endswith(b"\n"):
        before += b"\n"
    mode = stat.S_IMODE(target.stat().st_mode) if exists else None
    atomic_write(target, before + raw, mode=mode)


def _duplicate(place: str, name: str, dataset: str) -> ConfigError:
    return ConfigError(
        f"{place} has a result of {name} on {dataset} already, of the same images and protocol; "
        "leave the model out, remove the line, or name another --append"
    )


def _content(file: Path) -> bytes:
    try:
        return read_bounded(file, _MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a results file ({error})") from error


def _parsed(content: bytes, file: Path) -> dict[str, ResultLine]:
    lines = {f"{file.name}, line {n}": raw for n, raw in enumerate(content.split(b"\n"), 1)}
    return {place: parse_line(raw, what=place) for place, raw in lines.items() if raw.strip()}
