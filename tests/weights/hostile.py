"""Hostile inputs, each for a public reader. ``python -m tests.weights.hostile`` tries them all."""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

import pcd_hub
from pcd_hub.weights import store
from pcd_hub.weights.hub import client as hub_module
from tests.hub.server import Kind, LoopbackHub
from tests.hub.surroundings import point_client_at
from tests.weights.hostile_files import HOSTILE, NEWER, HostileFile
from tests.weights.hostile_files import files_of as parsed_files
from tests.weights.hostile_teachers import (
    GIB,
    SPARSE,
    packed_zeros,
    teacher_cases,
    zlib_wrapped,
)
from tests.weights.making import exported, files_of, rewritten
from tests.weights.trial import Case, Outcome, Read, tried

REPO = "org/test_vit.pcd"


def cases(export: Path) -> list[Case]:
    """All of them, made of an export of ``test_vit``."""
    return [
        *known_cases(export),
        *folder_cases(export),
        *fetched_cases(export),
        *name_cases(),
        *hub_name_cases(export),
        *wire_cases(export),
        *teacher_cases(),
    ]


# What hostile_files.py hands to a check, handed to create_model as the file of a folder.

_FILES = {
    "check_header": "model.safetensors",
    "load_tensors": "model.safetensors",
    "check_config": "config.json",
    "check_manifest": "pcd_manifest.json",
    "check": "pcd_manifest.json",
}
_LARGE = "bytes, at most|needs at most|expected at most"
"""Found before the file is read."""


def known_cases(export: Path) -> list[Case]:
    valid = parsed_files(export)
    return [
        Case(known.name, in_folder(export, {file: known.build(valid)}), _reason(known))
        for known in [*HOSTILE, *NEWER]
        if (file := _FILES.get(known.check.__name__)) and not known.name.startswith("fit")
    ]


def _reason(known: HostileFile) -> str:
    return known.reason and f"{known.reason}|{_LARGE}"


def in_folder(export: Path, files: dict[str, bytes]) -> Callable[[Path], Read]:
    """The export with some files exchanged, and a manifest that agrees."""

    def prepare(place: Path) -> Read:
        folder = shutil.copytree(export, place / "input")
        rewritten(folder, files)
        return lambda: pcd_hub.create_model(f"local-dir:{folder}")

    return prepare


# Folders that are not what they seem.


def folder_cases(export: Path) -> list[Case]:
    """For create_model, and for the store."""
    readers: dict[str, Callable[[Path], object]] = {
        "create_model": lambda folder: pcd_hub.create_model(f"local-dir:{folder}"),
        "store.add": lambda folder: store.add("test_vit.pcd", folder),
    }

    def changed(change: Change, read: Callable[[Path], object]) -> Callable[[Path], Read]:
        def prepare(place: Path) -> Read:
            folder = shutil.copytree(export, place / "input")
            change(folder)
            return lambda: read(folder)

        return prepare

    return [
        Case(f"folder for {reader}: {name}", changed(change, read), reason)
        for reader, read in readers.items()
        for name, (change, reason) in FOLDERS.items()
    ]


Change = Callable[[Path], None]


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def sparse(size: int, *names: str) -> Change:
    """Files of zeros that take no room on the disk, and stand so in the manifest."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).touch()
            os.truncate(folder / name, size)
        if "pcd_manifest.json" not in names:
            path = folder / "pcd_manifest.json"
            manifest = json.loads(path.read_text())
            left = [file for file in manifest["files"] if file["path"] not in names]
            zeros = [{"path": name, "size": size, "sha256": "0" * 64} for name in names]
            path.write_text(json.dumps({**manifest, "files": left + zeros}))

    return change


def subfolder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


FOLDERS: dict[str, tuple[Change, str]] = {
    "manifest is endless": (
        link("pcd_manifest.json", "/dev/zero"),
        "missing|has no pcd_manifest.json",
    ),
    "manifest is a pipe": (pipe("pcd_manifest.json"), "missing|has no pcd_manifest.json"),
    "manifest is itself": (
        link("pcd_manifest.json", "pcd_manifest.json"),
        "missing|has no pcd_manifest.json",
    ),
    "manifest of 3 GiB": (sparse(SPARSE, "pcd_manifest.json"), "at most 1000000"),
    "weights are endless": (link("model.safetensors", "/dev/zero"), "missing"),
    "weights are a pipe": (pipe("model.safetensors"), "missing"),
    "weights are a folder": (subfolder, "missing"),
    "weights of 3 GiB": (sparse(SPARSE, "model.safetensors"), "needs at most"),
    "config is a pipe": (pipe("config.json"), "missing"),
    "config of 3 GiB": (sparse(SPARSE, "config.json"), "at most 1000000"),
    "card of 3 GiB": (sparse(SPARSE, "README.md"), "at most 67108864"),
    "card is a password file": (link("README.md", "/etc/passwd"), "expected"),
    "45 pictures of 1 GiB": (sparse(GIB, *(f"{i}.png" for i in range(45))), "at most 67108864"),
}


FETCHED: dict[str, tuple[Callable[[str], Change], str]] = {
    f"{what} {name}": (change, file)
    for what, file in {
        "manifest": "{folder}/pcd_manifest.json",
        "config": "{folder}/config.json",
        "weights": "{folder}/model.safetensors",
        "pin": "{pins}@{commit}",
        "pin of a branch": "{pins}@main",
    }.items()
    for name, change in {
        "is a pipe": pipe,
        "is endless": lambda file: link(file, "/dev/zero"),
        "is itself": lambda file: link(file, file.rpartition("/")[2]),
        "of 3 GiB": lambda file: grown(SPARSE, file),
    }.items()
}
"""What the cache and the pin files may have become since a weight was fetched."""


def grown(size: int, name: str) -> Change:
    return lambda folder: os.truncate(folder / name, size)


def fetched_cases(export: Path) -> list[Case]:
    """For all who read what was fetched; the Hub answers, so that much is mended."""
    readers: dict[str, Callable[[str], object]] = {
        "fetch": pcd_hub.fetch,
        "create_model": pcd_hub.create_model,
        "where": pcd_hub.where,
        "list_weights": lambda _: pcd_hub.list_weights(),
    }

    def changed(change: str, read: Callable[[str], object]) -> Callable[[Path], Read]:
        def prepare(place: Path) -> Read:
            served(place, export)
            fetched = pcd_hub.fetch(REPO)
            become, file = FETCHED[change]
            places = {"folder": fetched.folder, "pins": store.home() / "pins" / REPO}
            become(file.format(commit=fetched.commit, **places))(Path("/"))
            return lambda: read(REPO if "branch" in change else fetched.reference)

        return prepare

    return [
        Case(f"fetched, for {reader}: {change}", changed(change, read), "")
        for reader, read in readers.items()
        for change in FETCHED
    ]


# Names.

ODD_NAMES = {
    "parent": "../x.pcd",
    "absolute": "/etc/passwd",
    "absolute weight": "/x.pcd",
    "parent inside": "a/../../x.pcd",
    "backslash": "..\\x.pcd",
    "double slash": "a//b.pcd",
    "NUL": "resnet18.pcd\0",
    "NUL in a folder": "local-dir:\0",
    "newline": "resnet18.pcd\n",
    "escape sequence": "\x1b[2J.pcd",
    "surrogate": "\ud800.pcd",
    "full width": "\uff52esnet18.pcd",
    "home": "~/x.pcd",
    "home of nobody": "local-dir:~nosuchuser/x",
    "long": "a" * 300 + ".pcd",
    "1 MB": "a" * 10**6,
    "1 MB of a repository": "a/" + "b" * 10**6,
    "1 MB of a folder": "local-dir:" + "a" * 10**6,
    "long folder": "local-dir:" + "a/" * 5000,
    "missing folder": "local-dir:/nonexistent",
    "a device": "local-dir:/dev/zero",
    "git": "org/x.git",
    "timm's own": "hf-hub:evil/x",
    "a revision outside": "org/x@../../y",
    "a revision of 1 MB": "org/x@" + "a" * 10**6,
    "shell": "$(touch canary).pcd",
    "format": "{0.__class__}.pcd",
    "empty": "",
    "dots": "..",
}


def name_cases() -> list[Case]:
    readers: dict[str, Callable[[str], object]] = {
        "create_model": pcd_hub.create_model,
        "where": pcd_hub.where,
        "fetch": pcd_hub.fetch,
        "store.add": lambda name: store.add(name, Path("/nonexistent")),
    }
    return [
        Case(f"name for {reader}: {name}", lambda _, r=read, v=value: lambda: r(v), "")
        for reader, read in readers.items()
        for name, value in ODD_NAMES.items()
    ]


# What a Hub may answer.

_LISTING = "is not a file name of a repository|in case only|has no pcd_manifest.json"
"""The last for names that may be in a repository, beside a weight; they are never asked for."""


def served(place: Path, export: Path) -> LoopbackHub:
    """A Hub in this process, which ends with it, and a client that loses no time."""
    hub = LoopbackHub(place / "hub")
    hub.__enter__()
    point_client_at(hub, pytest.MonkeyPatch())
    hub_module._TIMEOUT_SECONDS, hub_module._PATIENCE_SECONDS = 2.0, 0.0
    hub_module._SILENCE_SECONDS = 3.0
    huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT = 2
    hub.add_repo(REPO, files_of(export))
    return hub


def hub_name_cases(export: Path) -> list[Case]:
    """The names of hostile_files.py, and a few lists of them, as files of a repository."""

    def holding(names: Iterable[str]) -> Callable[[Path], Read]:
        def prepare(place: Path) -> Read:
            siblings = [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in names]
            return answering({"siblings": siblings}, export)(place)

        return prepare

    return [
        Case(f"of a repository, {known.name}", holding(known.build(None)), _LISTING)  # pyright: ignore
        for known in [*HOSTILE, *NEWER]
        if known.check.__name__ == "check_file_names"
        and known.name not in {"names: twice", "name: git attributes"}  # that is the Hub's own
    ]


def answering(facts: object, export: Path) -> Callable[[Path], Read]:
    """A Hub that says this of the repository; bytes as they are, a dict beside what is true."""

    def prepare(place: Path) -> Read:
        hub = served(place, export)
        body: object = facts
        if isinstance(facts, dict):
            true = {"id": REPO, "sha": hub.head(REPO), "private": False, "siblings": []}
            body = {**true, **facts}
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        said = {"Content-Type": "application/json"}
        hub.fault("status", "/api/models/", status=200, body=text, headers=said, times=99)
        return lambda: pcd_hub.fetch(REPO)

    return prepare


def faulty(
    export: Path, kind: Kind, match: str = "/resolve", **options: Any
) -> Callable[[Path], Read]:
    def prepare(place: Path) -> Read:
        hub = served(place, export)
        if "value" in options:
            options["value"] = options["value"].replace("PLACE", str(place / "outside"))
        hub.fault(kind, match, times=99, **options)
        return lambda: pcd_hub.create_model(REPO)

    return prepare


HEADERS: dict[Kind, dict[str, str]] = {
    "etag": {
        "parent": '"../../../outside"',
        "absolute": '"PLACE"',
        "weak, absolute": 'W/"PLACE"',
        "of 400 characters": f'"{"a" * 400}"',
        "of 60,000 characters": f'"{"a" * 60_000}"',
        "empty": '""',
        "a device of Windows": '"con"',
        "a percent-encoded parent": '"%2e%2e/outside"',
        "a backslash": '"..\\outside"',
        "a NUL escape": '"\\0"',
        "no quotes": "../../outside",
        "of another file": f'"{"0" * 64}"',
    },
    "commit_header": {"parent": "../..", "absolute": "PLACE", "empty": "", "another": "0" * 40},
    "size": {"negative": "-1", "no number": "x", "huge": str(2**70), "zero": "0"},
}


def listing(**facts: object) -> dict[str, object]:
    return {"siblings": [{"rfilename": "config.json", **facts}]}


ANSWERS: dict[str, object] = {
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e400",
    "HTML": b"<html></html>",
    "nothing": b"",
    "not UTF-8": b'{"id": "\xff"}',
    "100,000 lists": b"[" * 100_000,
    "siblings a number": {"siblings": 3},
    "siblings null": {"siblings": None},
    "a sibling null": {"siblings": [None]},
    "a name that is none": listing(rfilename=3),
    "a file without a name": {"siblings": [{}]},
    "a size that is none": listing(size="x"),
    "a size of NaN": b'{"id": "a/b", "siblings": [{"rfilename": "a.png", "size": NaN}]}',
    "a negative size": listing(size=-(2**70)),
    "a huge size": listing(size=2**70),
    "lfs a list": listing(size=1, lfs=[1]),
    "a commit that is a path": {"sha": "../.."},
    "a commit that is a number": {"sha": 3},
    "a commit in capitals": {"sha": "A" * 40},
    "no commit": {"sha": None},
    "a date that is none": {"lastModified": "x"},
    "100,000 files": {"siblings": [{"rfilename": f"{i}.png"} for i in range(100_000)]},
}


SIZES: dict[str, tuple[dict[str, int], str]] = {
    "100 GiB less 99 GiB": ({"model.safetensors": 100 * GIB, "pca.png": -99 * GIB}, "is it a Hub"),
    "a byte less than none": ({"config.json": -1}, "is it a Hub"),
    "of what is the Hub's own": ({".gitattributes": -(2**62), "pca.png": 2**62}, "is it a Hub"),
    "a manifest of 3 GiB": ({"pcd_manifest.json": 3 * GIB}, "at most 1000000"),
    "weights of 3 GiB": ({"model.safetensors": 3 * GIB}, ""),
    "weights of 0": ({"model.safetensors": 0}, ""),
}
"""Sizes that the Hub lists instead of the true ones, and what the refusal must say."""


def sized(export: Path, sizes: dict[str, int]) -> dict[str, object]:
    true = {path.name: path.stat().st_size for path in export.iterdir()}
    return {"siblings": [{"rfilename": n, "size": s} for n, s in (true | sizes).items()]}


def wire_cases(export: Path) -> list[Case]:
    bomb = zlib_wrapped(packed_zeros(SPARSE // 1024**2))
    unpacked = faulty(
        export,
        "status",
        "resolve-cache|/cdn/",
        method="GET",
        status=200,
        body=bomb,
        headers={"Content-Encoding": "deflate"},
    )
    return [
        *(
            Case(f"{kind}: {name}", faulty(export, kind, value=value), "")
            for kind, values in HEADERS.items()
            for name, value in values.items()
        ),
        *(Case(f"answer: {name}", answering(facts, export), "") for name, facts in ANSWERS.items()),
        *(
            Case(f"answer: sizes, {name}", answering(sized(export, sizes), export), reason)
            for name, (sizes, reason) in SIZES.items()
        ),
        Case("download: unpacks to 3 GiB", unpacked, "is longer than the expected"),
        Case("download: a flipped bit", faulty(export, "flip", "^/cdn/"), "sha256"),
        Case("download: cut short", faulty(export, "short", "^/cdn/"), "cannot read"),
    ]


def all_outcomes(only: str = "") -> Iterator[tuple[Case, Outcome]]:
    """Of the cases whose names hold ``only``."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        export = exported(Path(scratch) / "export", "test_vit", image_size=160)
        found = [case for case in cases(export) if re.search(only, case.name)]
        yield from zip(found, tried(found, Path(scratch)), strict=True)


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with how an input was met."""
    message = outcome.message
    wrong = {
        f"{outcome}": not outcome.is_harmless,
        "was read": bool(case.reason) and outcome.verdict == "read",
        f"not {case.reason!r}": bool(case.reason) and not re.search(case.reason, message),
        f"{len(message)} characters": len(message) > 800,
        "not printable": not message.isprintable(),
    }
    return [f"{case.name}: {what} -- {message[:1500]}" for what, is_so in wrong.items() if is_so]


def main() -> None:
    """A line for each input, then what is wrong, then the numbers."""
    tried_so_far = []
    wrong = []
    for case, one in all_outcomes(*sys.argv[1:]):
        tried_so_far.append(one)
        wrong += faults(case, one)
        size = one.grown / 2**20
        print(f"{one.verdict:10} {one.seconds:6.2f} s {size:6.0f} MiB  {one.name}", flush=True)
    for fault in wrong:
        print("\nWRONG", fault.encode("ascii", "backslashreplace").decode())
    slowest = max(tried_so_far, key=lambda one: one.seconds)
    largest = max(tried_so_far, key=lambda one: one.grown)
    print(
        f"{len(tried_so_far)} inputs, {sum(o.verdict == 'refused' for o in tried_so_far)} refused; "
        f"slowest {slowest.seconds:.1f} s ({slowest.name}), "
        f"largest {largest.grown / 2**20:.0f} MiB ({largest.name}); "
        f"{sum(bool(o.executed) for o in tried_so_far)} executed, "
        f"{sum(bool(o.outside) for o in tried_so_far)} wrote outside"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
