"""``pcd-hub doctor``: what is installed, what can be used, and whether a distillation can run."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from pcd_hub.cli import machine
from pcd_hub.cli.machine import Package, Place
from pcd_hub.cli.output import print_json
from pcd_hub.errors import PCDHubError, pip_install

_NEEDED = {"accelerate", "tyro"}
"""Packages of the extra ``train`` without which nothing can be distilled."""

_SHOWN = ("", "train", "bands", "completion")
"""Extras in the report."""

_NEEDED_PLACES = {"runs", "store", "temporary files"}
_TRAIN = pip_install("train")


def run(options: argparse.Namespace) -> None:
    """Print the report.

    Raises:
        PCDHubError: If a distillation cannot run, with all reasons.
    """
    found = report(offline=options.offline)
    if options.json:
        print_json(found)
    else:
        print("\n".join(_lines(found)))
    if found["problems"]:
        raise PCDHubError(f"a distillation cannot run: {' | '.join(found['problems'])}")


def report(*, offline: bool) -> dict[str, Any]:
    """Return all facts as JSON values, without the user's token."""
    packages, places = machine.packages(), machine.places()
    problems = [*_package_problems(packages), *_place_problems(places)]
    facts = {
        "ready": not problems,
        "problems": problems,
        "versions": machine.versions(),
        "packages": [{**one._asdict(), "fits": one.fits} for one in packages],
        "machine": machine.machine(),
        "places": [place._asdict() for place in places],
        "hub": machine.hub(offline=offline),
        "default_teacher": machine.default_teacher(),
        "variables": machine.variables(),
    }
    secret = machine.token()
    return machine.without_secret(facts, [secret] if secret else [])


def _package_problems(packages: Sequence[Package]) -> Iterator[str]:
    for one in packages:
        if (one.extra == "" or one.name in _NEEDED) and not one.fits:
            yield f"{_state(one)}; {_remedy(one)}"
    known = {one.name for one in packages}
    for name in sorted(_NEEDED - known):  # pcd_hub itself is not installed, or an old version
        if machine.installed_version(name) is None:
            yield f"{name} is not installed; {_TRAIN}"


def _place_problems(places: Sequence[Place]) -> Iterator[str]:
    return (place.problem for place in places if place.problem and place.what in _NEEDED_PLACES)


def _state(one: Package) -> str:
    if one.installed is None:
        return f"{one.name} is not installed"
    return f"{one.name} {one.installed} is installed, expected {one.required}"


def _remedy(one: Package) -> str:
    return pip_install(one.extra, options="-U ")


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield from _table("VERSIONS", found["versions"])
    for one in found["packages"]:
        if one["extra"] in _SHOWN:
            yield f"  {one['name']:24} {_package_line(one)}"
    yield from _table("MACHINE", _devices(found["machine"]))
    yield "FOLDERS"
    for place in found["places"]:
        state = place["problem"] or f"writable, {place['free_gb']} GB free"
        yield f"  {place['what']:24} {place['path']}: {state}"
    teacher = _default_teacher(found)
    yield from _table("HUB", {**_hub(found["hub"]), "default teacher": teacher})
    yield from _table("VARIABLES", found["variables"] or {"none set": ""})
    yield _conclusion(found)
    for problem in found["problems"]:
        yield f"  {problem}"


def _conclusion(found: dict[str, Any]) -> str:
    if not found["ready"]:
        return "A distillation cannot run here:"
    if found["default_teacher"] is None and not found["hub"]["reachable"]:
        return "A distillation can run here with a teacher of yours: --teacher local-dir:DIR."
    return "A distillation can run here."


def _default_teacher(found: dict[str, Any]) -> str:
    if found["default_teacher"] is not None:
        return f"{found['default_teacher']}, in the cache"
    if found["hub"]["reachable"]:
        return "none in the cache; the first run downloads it"
    if found["hub"]["reachable"] is None:
        return "none in the cache; a run has to download it"
    return "none in the cache, and the Hub is not reachable"


def _table(title: str, rows: dict[str, Any]) -> Iterator[str]:
    yield title
    for name, value in rows.items():
        yield f"  {name:24} {value}".rstrip()


def _package_line(one: dict[str, Any]) -> str:
    if one["fits"]:
        return str(one["installed"])
    state = f"{one['installed']}, expected {one['required']}" if one["installed"] else "missing"
    return f"{state}; for {one['used_for']}: {pip_install(one['extra'])}"


def _devices(facts: dict[str, Any]) -> dict[str, str]:
    gpus = [f"{gpu['name']}, {gpu['memory_gb']} GB" for gpu in facts["gpus"]]
    return {
        "GPU": "; ".join(gpus) or ("Apple (MPS)" if facts["mps"] else "none"),
        "CUDA of PyTorch": facts["cuda"] or "none",
        "CPU cores": str(facts["cpu_cores"]),
        "free memory": _gigabytes(facts["memory_gb"]),
        "free in /dev/shm": _gigabytes(facts["shm_gb"]),
    }


def _gigabytes(value: float | None) -> str:
    return "unknown" if value is None else f"{value} GB"


def _hub(facts: dict[str, Any]) -> dict[str, str]:
    return {
        "endpoint": facts["endpoint"],
        "reachable": "yes" if facts["reachable"] else facts["problem"],
        "token": "present" if facts["token"] else "none (needed for private weights and publish)",
    }
