"""Processes that save, read, fetch and list the same names: every reader sees a whole weight.

    python scripts/store_campaign.py --processes 8 --seconds 60

Every weight's tensors all hold one number, which its record names too. So a reader finds out
whether what it got, verified as always, is of one version: one number in all tensors, and the same
in the record. Every other process saves, the others load by name, load the folder that they were
pointed to by plain timm, verify it, list, and fetch: from a Hub on the loopback, which gets a new
commit every second. Prints the counts, and fails at the first reader that saw anything else, or if
anything unfinished is left over.
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

sys.path.append(str(Path(__file__).parents[1]))

import pcd_hub
from pcd_hub.models.timm_loading import create_pretrained
from pcd_hub.weights import store
from pcd_hub.weights.export import export_weight
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import verify
from pcd_hub.weights.record import WeightRecord
from tests.hub.server import LoopbackHub

GRACE_SECONDS = 20  # else no old version would be swept away within a minute
NAMES = ("test_resnet.pcd", "test_resnet.pcd_b", "test_resnet.pcd_c")
ORGANISATION = "org"


def exported(folder: Path, value: float) -> Path:
    """A weight of one number, which stands as the seed in its record."""
    model = timm.create_model("test_resnet", num_classes=0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(value)
    record = dataclasses.replace(WeightRecord.trial("test_resnet"), seed=int(value))
    return export_weight(model.state_dict(), record, folder, image_size=32)


def save(name: str, exports: list[Path], turn: int) -> None:
    """The next of the exports, under ``name``."""
    store.add(name, exports[turn % len(exports)])


def create(name: str, *_: object) -> None:
    """The model holds one number."""
    model = pcd_hub.create_model(name)
    check_one({float(v) for p in model.parameters() for v in p.detach().unique()}, name)


def plain(name: str, *_: object) -> None:
    """The same by timm alone, which verifies nothing."""
    model = create_pretrained(f"local-dir:{pcd_hub.where(name)}")
    check_one({float(v) for p in model.parameters() for v in p.detach().unique()}, name)


def read(name: str, *_: object) -> None:
    """Tensors and record are of the same version, also a moment after it was looked up."""
    folder = (store.home() / name).resolve()
    check_folder(folder, name)
    verify(folder)


def fetch(name: str, *_: object) -> None:
    """The Hub's newest, which others fetch too, and may have fetched already."""
    fetched = pcd_hub.fetch(f"{ORGANISATION}/{name}")
    check_folder(fetched.folder, fetched.reference)


def look(name: str, *_: object) -> None:
    """The name is never without a weight, also between two saves."""
    for _look in range(1000):
        if pcd_hub.where(name) is None:
            raise AssertionError(f"{name} is not there")


def show(name: str, *_: object) -> None:
    """The list names every weight, and each is readable."""
    listed = {weight.name: weight for weight in pcd_hub.list_weights()}
    if name not in listed:
        raise AssertionError(f"the list holds {sorted(listed)}, and not {name}")
    if listed[name].license == "unreadable":
        raise AssertionError(f"the list cannot read {name}")


def check_folder(folder: Path, name: str) -> None:
    """Tensors and record are of the same version."""
    weight = read_weight(folder)
    floats = (t for t in weight.tensors.values() if t.is_floating_point())
    check_one({float(v) for tensor in floats for v in tensor.unique()} | {weight.record.seed}, name)


def check_one(values: set[float], name: str) -> None:
    """All of one version."""
    if len(values) != 1:
        raise AssertionError(f"{name} is a mixture of {sorted(values)}")


READERS: tuple[Callable[..., None], ...] = (create, plain, read, fetch, look, show)


def work(
    number: int,
    exports: dict[str, list[Path]],
    seconds: float,
    together: "threading.Barrier",
    results: "multiprocessing.Queue[object]",
) -> None:
    """One process of the campaign: its counts, or what it met instead."""
    torch.set_num_threads(1)
    store._GRACE_SECONDS = GRACE_SECONDS
    counts: Counter[str] = Counter()
    names, turn = list(exports), number
    together.wait()
    end = time.time() + seconds
    try:
        while time.time() < end:
            act = save if number % 2 == 0 else READERS[turn % len(READERS)]
            name = names[turn % len(names)]
            act(name, exports[name], turn // len(names))
            counts[act.__name__] += 1
            turn += 1
    except Exception as error:
        results.put(f"process {number}, {type(error).__name__}: {error}")
    else:
        results.put(counts)


def campaign(processes: int, seconds: float, place: Path) -> Counter[str]:
    """The counts of all processes.

    Raises:
        SystemExit: With what the first of them met instead of a whole weight, or with what is left
            over in the store that is not finished.
    """
    with LoopbackHub(place / "hub") as hub:
        around = hub.env() | {"PCD_HUB_HOME": str(place / "store"), "HF_HUB_OFFLINE": "0"}
        with mock.patch.dict(os.environ, around):
            counts = _campaign(processes, seconds, place, hub)
            if left := unfinished():
                sys.exit(f"left over: {left}")
    return counts


def _campaign(processes: int, seconds: float, place: Path, hub: LoopbackHub) -> Counter[str]:
    exports = [exported(place / str(value), value) for value in (1.0, 2.0, 3.0)]
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
    found: list[object] = []
    turns = itertools.count(len(NAMES))
    while len(found) < processes:
        if died := [worker.exitcode for worker in workers if worker.exitcode]:
            sys.exit(f"a process ended with {died[0]}, and without a word")
        version, number = divmod(next(turns), len(NAMES))
        hub.commit(f"{ORGANISATION}/{NAMES[number]}", versions[version % len(versions)])
        with contextlib.suppress(queue.Empty):
            found.append(results.get(timeout=1.0))
    for worker in workers:
        worker.join()
    if failed := [outcome for outcome in found if isinstance(outcome, str)]:
        sys.exit(failed[0])
    return sum((outcome for outcome in found if isinstance(outcome, Counter)), Counter())


def unfinished() -> list[str]:
    """What neither a weight nor the store's own folders are."""
    home = store.home()
    odd = [path for path in home.iterdir() if path.name not in {*NAMES, ".versions", "pins"}]
    odd += home.glob("pins/*/.*")
    return [str(path.relative_to(home)) for path in odd]


def main() -> None:
    """Run the campaign and print its counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        counts = campaign(options.processes, options.seconds, Path(place))
    done = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(f"{options.processes} processes, {options.seconds:.0f} s: {done}; all whole")


if __name__ == "__main__":
    main()
