"""Save, read, fetch and list the same weights from several processes at once.

    python -m tests.stress.store_campaign --processes 8 --seconds 60

All tensors of a weight have the same value, which is also the seed in its record, so a reader can
check that it got a single version. Half of the processes save. The others load by name, load the
store's folder by plain timm, verify it, list the store, and fetch from a loopback Hub that gets a
new commit every second. Prints the counts; the exit status is 1 if a reader got an inconsistent
weight, or if temporary files remain.
"""

import argparse
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import timm
import torch

import pcd_hub
from pcd_hub.models.timm_loading import create_pretrained
from pcd_hub.weights import store
from pcd_hub.weights.export import export_weight
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import verify
from pcd_hub.weights.record import WeightRecord
from tests.hub.server import LoopbackHub

GRACE_SECONDS = 20  # short enough that old versions are removed during the campaign
NAMES = ("test_resnet.pcd", "test_resnet.pcd_b", "test_resnet.pcd_c")
ORGANISATION = "org"


def export_constant(folder: Path, value: float) -> Path:
    """Export a weight in which all tensors, and the seed of its record, are ``value``."""
    model = timm.create_model("test_resnet", num_classes=0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(value)
    record = dataclasses.replace(WeightRecord.trial("test_resnet"), seed=int(value))
    return export_weight(model.state_dict(), record, folder, image_size=32)


def save(name: str, exports: list[Path], turn: int) -> None:
    """Save the next of the exports under ``name``."""
    store.add(name, exports[turn % len(exports)])


def create(name: str, *_: object) -> None:
    """Create the model by name and check its parameters."""
    model = pcd_hub.create_model(name)
    check_one_version({float(v) for p in model.parameters() for v in p.detach().unique()}, name)


def plain(name: str, *_: object) -> None:
    """Create the model with plain timm, which verifies nothing."""
    model = create_pretrained(f"local-dir:{pcd_hub.where(name)}")
    check_one_version({float(v) for p in model.parameters() for v in p.detach().unique()}, name)


def read(name: str, *_: object) -> None:
    """Check tensors, record and hashes of the store's folder."""
    folder = (store.home() / name).resolve()
    check_folder(folder, name)
    verify(folder)


def fetch(name: str, *_: object) -> None:
    """Fetch the newest commit from the Hub, as other processes do at the same time."""
    fetched = pcd_hub.fetch(f"{ORGANISATION}/{name}")
    check_folder(fetched.folder, fetched.reference)


def where(name: str, *_: object) -> None:
    """Check that the name always has a weight, also between two saves."""
    for _attempt in range(1000):
        if pcd_hub.where(name) is None:
            raise AssertionError(f"{name} is missing")


def list_all(name: str, *_: object) -> None:
    """Check that the list contains the weight and could read it."""
    weights = {weight.name: weight for weight in pcd_hub.list_weights()}
    if name not in weights:
        raise AssertionError(f"the list has {sorted(weights)}, but not {name}")
    if weights[name].license == "unreadable":
        raise AssertionError(f"the list could not read {name}")


def check_folder(folder: Path, name: str) -> None:
    """Check that tensors and record are of the same version."""
    weight = read_weight(folder)
    floats = (t for t in weight.tensors.values() if t.is_floating_point())
    check_one_version(
        {float(v) for tensor in floats for v in tensor.unique()} | {weight.record.seed}, name
    )


def check_one_version(values: set[float], name: str) -> None:
    """Check that all values are of one version."""
    if len(values) != 1:
        raise AssertionError(f"{name} is a mixture of {sorted(values)}")


READERS: tuple[Callable[..., None], ...] = (create, plain, read, fetch, where, list_all)


def work(
    number: int,
    exports: dict[str, list[Path]],
    seconds: float,
    barrier: "threading.Barrier",
    results: "multiprocessing.Queue[object]",
) -> None:
    """Run one process of the campaign; put its counts, or its error, into ``results``."""
    torch.set_num_threads(1)
    store._GRACE_SECONDS = GRACE_SECONDS
    counts: Counter[str] = Counter()
    names, turn = list(exports), number
    barrier.wait()
    end = time.time() + seconds
    try:
        while time.time() < end:
            action = save if number % 2 == 0 else READERS[turn % len(READERS)]
            name = names[turn % len(names)]
            action(name, exports[name], turn // len(names))
            counts[action.__name__] += 1
            turn += 1
    except Exception as error:
        results.put(f"process {number}, {type(error).__name__}: {error}")
    else:
        results.put(counts)


def campaign(processes: int, seconds: float, scratch: Path) -> Counter[str]:
    """Run the campaign and return the counts of all processes.

    Raises:
        SystemExit: If a process failed, or if temporary files remain in the store.
    """
    with LoopbackHub(scratch / "hub") as hub:
        environ = hub.env() | {"PCD_HUB_HOME": str(scratch / "store"), "HF_HUB_OFFLINE": "0"}
        with mock.patch.dict(os.environ, environ):
            counts = _campaign(processes, seconds, scratch, hub)
            if remaining := temporary_files():
                sys.exit(f"temporary files remain: {remaining}")
    return counts


def _campaign(processes: int, seconds: float, scratch: Path, hub: LoopbackHub) -> Counter[str]:
    exports = [export_constant(scratch / str(value), value) for value in (1.0, 2.0, 3.0)]
    versions = [{path.name: path.read_bytes() for path in export.iterdir()} for export in exports]
    for name in NAMES:
        store.add(name, exports[0])
        hub.add_repo(f"{ORGANISATION}/{name}", versions[0])
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[object] = context.Queue()
    arguments = dict.fromkeys(NAMES, exports), seconds, context.Barrier(processes), results
    workers = [
        context.Process(target=work, args=(number, *arguments), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    outcomes: list[object] = []
    turns = itertools.count(len(NAMES))
    while len(outcomes) < processes:
        if codes := [worker.exitcode for worker in workers if worker.exitcode]:
            sys.exit(f"a process ended with exit code {codes[0]}")
        version, number = divmod(next(turns), len(NAMES))
        hub.commit(f"{ORGANISATION}/{NAMES[number]}", versions[version % len(versions)])
        with contextlib.suppress(queue.Empty):
            outcomes.append(results.get(timeout=1.0))
    for worker in workers:
        worker.join()
    if errors := [outcome for outcome in outcomes if isinstance(outcome, str)]:
        sys.exit(errors[0])
    return sum((outcome for outcome in outcomes if isinstance(outcome, Counter)), Counter())


def temporary_files() -> list[str]:
    """Return the entries of the store that are neither weights nor its own folders."""
    home = store.home()
    others = [path for path in home.iterdir() if path.name not in {*NAMES, ".versions", "pins"}]
    others += home.glob("pins/*/.*")
    return [str(path.relative_to(home)) for path in others]


def main() -> None:
    """Run the campaign and print its counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        counts = campaign(options.processes, options.seconds, Path(scratch))
    summary = ", ".join(f"{count} {action}" for action, count in sorted(counts.items()))
    print(f"{options.processes} processes, {options.seconds:.0f} s: {summary}; all consistent")


if __name__ == "__main__":
    main()
