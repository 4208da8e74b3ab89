"""Fetch one commit of a Hub repository and verify every byte.

::

    <HF_HUB_CACHE>/models--ORG--NAME/snapshots/<commit>/   files, shared with other programs
    <PCD_HUB_HOME>/pins/ORG/NAME@<revision>                "ORG/NAME@<commit> <manifest's sha256>"

huggingface_hub downloads into a private folder. A file is moved to the cache once its sha256
matches the manifest, as a regular file, the way huggingface_hub stores files where symbolic links
are not available. (Its own download into the cache does not verify the content, and derives the
path from the server's ETag.) The pin files are written last, after all checks.
"""

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants

from pcd_hub.errors import HubUnreachableError, WeightError
from pcd_hub.files.read import read_bounded
from pcd_hub.files.writable import writing
from pcd_hub.files.write import atomic_write
from pcd_hub.weights import shipped, store
from pcd_hub.weights.hub.address import is_commit, is_offline, split_reference
from pcd_hub.weights.hub.client import Hub, RepoState, check_total
from pcd_hub.weights.hub.published import reference_of
from pcd_hub.weights.layout import CARD_FILE, MANIFEST_FILE
from pcd_hub.weights.load import ReadWeight, read_weight
from pcd_hub.weights.manifest import check_listed, read_manifest, sha256
from pcd_hub.weights.safety import MAX_JSON_BYTES, check_listing

log = logging.getLogger("pcd_hub")

_DRAFT_SECONDS = 86_400
_MAX_PIN_BYTES = 1000
_CACHE_REMEDY = "free some room or fix its permissions, or set HF_HUB_CACHE to another folder"
_PIN_REMEDY = "fix its permissions or free some room, or set PCD_HUB_HOME to another folder"


@dataclass(frozen=True, kw_only=True)
class FetchedWeight:
    """A weight in the Hugging Face cache, at one commit."""

    repo: str
    commit: str
    manifest_sha256: str

    @property
    def folder(self) -> Path:
        """The commit's folder in the Hugging Face cache."""
        return _repo_folder(self.repo) / "snapshots" / self.commit

    @property
    def reference(self) -> str:
        """``ORG/NAME@COMMIT``."""
        return f"{self.repo}@{self.commit}"

    @property
    def lock_line(self) -> str:
        """The line in a pin file; it identifies every byte of the weight."""
        return f"{self.reference} {self.manifest_sha256}"


def fetch(name: str, *, manifest_sha256: str | None = None) -> FetchedWeight:
    """Download a published weight unless it is in the cache, and verify it.

    A branch or tag is first resolved to a commit, and only that commit is used. Damaged or missing
    files are downloaded again; the manifest must not have changed since the first fetch.

    Args:
        name: ``ORG/NAME[@REVISION]``, or the name of a published weight (``resnet18.pcd``).
        manifest_sha256: Expected sha256 of the manifest, if you pinned it.

    Raises:
        WeightError: If the name is unknown, or the files are not a valid weight of pcd_hub, are
            still damaged after a second download, or cannot be written.
        HubError: If the Hub refuses access, or is needed and cannot be reached.
    """
    return read_fetched(name, manifest_sha256=manifest_sha256)[0]


def read_fetched(
    name: str, *, manifest_sha256: str | None = None
) -> tuple[FetchedWeight, ReadWeight]:
    """Fetch a weight like :func:`fetch`, and also return its verified content."""
    found = reference_of(name)
    if found is None and shipped.where(name):
        raise WeightError(f"{name} is shipped with pcd_hub and needs no fetch; load it by its name")
    if found is None:
        raise WeightError(
            f"{name} is not among the published weights; give its repository (ORG/{name}), or set "
            "PCD_HUB_ORG to the organisation that publishes it"
        )
    reference, listed_sha256 = found
    repo, revision = split_reference(reference)
    commit, state = _resolve(repo, revision)
    pins = {"the list of published weights": listed_sha256, "the caller": manifest_sha256}
    fetched = _read_pin(repo, commit)
    if fetched:
        _check_pins(fetched, pins)
        pins[str(_pin_file(repo, commit))] = fetched.manifest_sha256
    try:
        fetched = fetched or _download(repo, commit, pins, state)
        weight = _read(fetched)
    except WeightError as error:
        if is_offline():
            raise WeightError(f"{error}; {_remedy(repo, commit)}") from None
        log.warning("%s@%s is damaged: downloading it again; %s", repo, commit, error)
        fetched = _download(repo, commit, pins, state)
        weight = _read(fetched)
    for pinned in (commit, revision):
        _write_pin(fetched, pinned)
    return fetched, weight


def fetched_folder(reference: str) -> Path | None:
    """Return the folder of ``ORG/NAME[@REVISION]`` if it was fetched; make no network request.

    Raises:
        WeightError: If its manifest is missing, or has changed since it was fetched.
    """
    fetched = _read_pin(*split_reference(reference))
    if fetched is None:
        return None
    try:
        read_manifest(fetched.folder, pinned=fetched.manifest_sha256)
    except WeightError as error:
        raise WeightError(f"{error}; {_remedy(fetched.repo, fetched.commit)}") from None
    return fetched.folder


def fetched_folders() -> dict[str, Path]:
    """Return the folders of all fetched commits by reference, without verifying them."""
    found = {}
    for pin in sorted((store.home() / "pins").glob("*/*@*")):
        repo, _, commit = f"{pin.parent.name}/{pin.name}".partition("@")
        with suppress(WeightError):
            fetched = _read_pin(repo, commit) if is_commit(commit) else None
            if fetched and (fetched.folder / MANIFEST_FILE).is_file():
                found[fetched.reference] = fetched.folder
    return found


def _resolve(repo: str, revision: str | None) -> tuple[str, RepoState | None]:
    """Return commit and state from the Hub, or commit and None from a pin file."""
    if is_offline():
        return _pinned_commit(repo, revision), None
    if revision and is_commit(revision) and _read_pin(repo, revision):
        return revision, None
    try:
        state = Hub().state(repo, revision)
    except HubUnreachableError as error:
        with suppress(WeightError):
            commit = _pinned_commit(repo, revision)
            log.warning("%s; using %s@%s, which was fetched before", error, repo, commit)
            return commit, None
        raise
    return state.commit, state


def _pinned_commit(repo: str, revision: str | None) -> str:
    pinned = _read_pin(repo, revision)
    if pinned is None or _read_pin(repo, pinned.commit) is None:
        raise WeightError(
            f"{repo}{f'@{revision}' if revision else ''} was not fetched ({store.home()} holds no "
            "pin file of it); run `pcd-hub fetch` once with network access, or set PCD_HUB_HOME"
        )
    return pinned.commit


def _read(fetched: FetchedWeight) -> ReadWeight:
    pinned = fetched.manifest_sha256
    return read_weight(fetched.folder, what=fetched.reference, manifest_sha256=pinned)


def _remedy(repo: str, commit: str) -> str:
    return f"run `pcd-hub fetch {repo}@{commit}` with network access"


def _check_pins(fetched: FetchedWeight, pins: Mapping[str, str | None]) -> None:
    for source, pinned in pins.items():
        if pinned and pinned != fetched.manifest_sha256:
            raise WeightError(
                f"{fetched.reference}: its manifest has sha256 {fetched.manifest_sha256[:12]}, "
                f"expected {pinned[:12]}, which was pinned by {source}; it is not the weight you "
                "mean: ask its publisher, or remove that pin if you trust what is there now"
            )


def _check_listing(repo: str, state: RepoState) -> None:
    what = f"{repo}@{state.commit}"
    check_listing(state.files, what=what)
    if MANIFEST_FILE not in state.files:
        raise WeightError(
            f"{what} has no {MANIFEST_FILE}: it was not published by pcd_hub and cannot be "
            f'verified. timm.create_model("hf-hub:{what}", pretrained=True) loads it unverified'
        )
    if (size := state.files[MANIFEST_FILE].size) > MAX_JSON_BYTES:
        raise WeightError(
            f"{what}: {MANIFEST_FILE} has {size} bytes, expected at most {MAX_JSON_BYTES}; it was "
            "not published by pcd_hub"
        )


def _download(
    repo: str, commit: str, pins: Mapping[str, str | None], state: RepoState | None
) -> FetchedWeight:
    """Download the files missing from the cache, each into a private folder first.

    Raises:
        WeightError: If the manifest is not the pinned one, or a file does not match the manifest.
        HubError: If the Hub refuses access or cannot be reached.
    """
    hub = Hub()
    state = state or hub.state(repo, commit)
    _check_listing(repo, state)
    with writing(constants.HF_HUB_CACHE, remedy=_CACHE_REMEDY), _draft_folder(repo) as draft:
        size = state.files[MANIFEST_FILE].size
        manifest = hub.download(repo, commit, MANIFEST_FILE, draft, size=size)
        fetched = FetchedWeight(repo=repo, commit=commit, manifest_sha256=sha256(manifest))
        _check_pins(fetched, pins)
        entries = read_manifest(draft)["files"]
        _check_entries(entries, state, what=fetched.reference)
        for entry in entries:
            with suppress(WeightError):
                check_listed(fetched.folder, entry)
                continue  # already in the cache, perhaps from another program
            arrived = hub.download(repo, commit, entry["path"], draft, size=entry["size"])
            _check_arrived(arrived, entry, what=fetched.reference)
            _place(arrived, fetched, entry["path"])
        _place(manifest, fetched, MANIFEST_FILE)
    return fetched


def _check_entries(entries: list[dict[str, Any]], state: RepoState, *, what: str) -> None:
    """Check that the Hub has every file in the manifest, and their total size."""
    check_total(sum(entry["size"] for entry in entries), what)
    listed = {entry["path"] for entry in entries}
    if missing := sorted(listed - state.files.keys()):
        raise WeightError(
            f"{what}: {missing[0]!r} is in the manifest but not in the repository; ask its "
            "publisher to run `pcd-hub publish` again"
        )
    if others := sorted(state.files.keys() - listed - {MANIFEST_FILE, ".gitattributes"}):
        log.info("%s: not in the manifest and not fetched: %s", what, ", ".join(others)[:500])


def _check_arrived(path: Path, entry: dict[str, Any], *, what: str) -> None:
    if (found := sha256(path)) == entry["sha256"]:
        return
    edited = (
        "it was edited on the Hub, or is damaged; its publisher can run `pcd-hub publish` again, "
        "or use the commit before the edit"
    )
    raise WeightError(
        f"{what}: {entry['path']} has sha256 {found[:12]}, expected {entry['sha256'][:12]} from "
        f"its manifest; {edited if entry['path'] == CARD_FILE else 'it arrived damaged'}"
    )


def _place(arrived: Path, fetched: FetchedWeight, name: str) -> None:
    """Move a verified file to its place in the cache, replacing any file or folder there."""
    target = fetched.folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    cache = Path(constants.HF_HUB_CACHE)
    if target.parent.resolve() != cache.resolve() / target.parent.relative_to(cache):
        raise WeightError(f"{target.parent} is a link to another folder; remove it")
    if target.is_dir() and not target.is_symlink():  # cannot be replaced by a file
        shutil.rmtree(target)
    arrived.replace(target)


@contextmanager
def _draft_folder(repo: str) -> Iterator[Path]:
    """Create a private folder in the repository's cache folder, and remove it afterwards.

    Folders left by killed processes more than a day ago are removed too.
    """
    parent = _repo_folder(repo)
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(".pcd-hub-*"):
        with suppress(FileNotFoundError):  # another process removed it first
            if time.time() - old.stat().st_mtime > _DRAFT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=".pcd-hub-", dir=parent))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _repo_folder(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


# Pin files.


def _pin_file(repo: str, revision: str | None) -> Path:
    return store.home() / "pins" / f"{repo}@{quote(revision or 'main', safe='')}"


def _read_pin(repo: str, revision: str | None) -> FetchedWeight | None:
    """Read the pin file of a revision; None if there is none.

    Raises:
        WeightError: If it is damaged or cannot be read.
    """
    file = _pin_file(repo, revision)
    try:
        raw = read_bounded(file, _MAX_PIN_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightError(f"{file} cannot be read: {error.strerror}; {_PIN_REMEDY}") from error
    except ValueError:
        raw = b""
    line = rb"%b@([0-9a-f]{40}) ([0-9a-f]{64})\n?" % re.escape(repo).encode()
    found = re.fullmatch(line, raw)
    if not found or (is_commit(revision) and found[1].decode() != revision):
        raise WeightError(f"{file} is damaged; delete it and fetch {repo} again")
    commit, manifest_sha256 = found[1].decode(), found[2].decode()
    return FetchedWeight(repo=repo, commit=commit, manifest_sha256=manifest_sha256)


def _write_pin(fetched: FetchedWeight, revision: str | None) -> None:
    """Write a pin file atomically, unless it is up to date: the store may be read-only."""
    file, line = _pin_file(fetched.repo, revision), f"{fetched.lock_line}\n".encode()
    with suppress(OSError, ValueError):
        if read_bounded(file, _MAX_PIN_BYTES) == line:
            return
    with writing(file, remedy=_PIN_REMEDY):
        store.make_folder(file.parent)
        atomic_write(file, line, mode=0o644)  # other users may read the store
