"""From the Hub to this machine: one commit, every byte checked, all or nothing.

::

    <PCD_HUB_HOME>/.hub/ORG/NAME/<commit>/        the files of that commit
    <PCD_HUB_HOME>/.hub/ORG/NAME/refs/<revision>  "ORG/NAME@<commit> <sha256 of its manifest>"

What is fetched lies there for good and is used without the network (``HF_HUB_OFFLINE=1``).
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from pcd_hub.errors import HubUnreachableError, WeightError
from pcd_hub.weights import store
from pcd_hub.weights.address import is_commit, is_offline, split_reference
from pcd_hub.weights.hub import Hub, RepoState, check_total
from pcd_hub.weights.layout import CARD_FILE, MANIFEST_FILE
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import read_manifest, sha256
from pcd_hub.weights.published import reference_of
from pcd_hub.weights.safety import check_file_names

log = logging.getLogger("pcd_hub")

HUB_ONLY_FILES = frozenset({".gitattributes"})
"""What the Hub itself puts into every repository."""
_DRAFT_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class FetchedWeight:
    """One commit of one repository, on this machine and verified."""

    repo: str
    commit: str
    manifest_sha256: str
    folder: Path

    @property
    def reference(self) -> str:
        """``ORG/NAME@COMMIT``: what it is, for ever."""
        return f"{self.repo}@{self.commit}"

    @property
    def lock_line(self) -> str:
        """One line that pins every byte."""
        return f"{self.reference} {self.manifest_sha256}"


def fetch(name: str, *, manifest_sha256: str | None = None) -> FetchedWeight:
    """Bring a published weight to this machine, or find it there, and verify it.

    A branch or tag is resolved to a commit first, and only that commit is used. Every file is held
    against the manifest, and header, configuration and values are checked before the folder gets
    its place.

    Args:
        name: ``ORG/NAME[@REVISION]``, or the name of a published weight (``resnet18.pcd``).
        manifest_sha256: What the manifest must hash to, if you pinned it.

    Raises:
        WeightError: If the name is unknown, or the files are damaged, also when they are fetched
            anew, or not of pcd_hub.
        HubError: If the Hub refuses it or cannot be reached, and it was not fetched before.
    """
    fetched = find_published(name, manifest_sha256=manifest_sha256)
    verify = partial(
        read_weight,
        fetched.folder,
        what=fetched.reference,
        manifest_sha256=fetched.manifest_sha256,
    )
    try:
        verify()
    except WeightError as error:
        if is_offline():
            raise
        log.warning("%s; fetching it anew", error)
        hub = Hub()
        _download(hub, fetched.repo, hub.state(fetched.repo, fetched.commit), anew=True)
        verify()
    return fetched


def find_published(name: str, *, manifest_sha256: str | None = None) -> FetchedWeight:
    """As :func:`fetch`, but what was fetched before is verified by whoever reads it."""
    found = reference_of(name)
    if found is None:
        raise WeightError(
            f"{name} is not among the published weights; name its repository (ORG/{name}), or set "
            "PCD_HUB_ORG to the organisation that publishes it"
        )
    reference, known_sha256 = found
    repo, revision = split_reference(reference)
    fetched = _resolved(repo, revision)
    for pinned in filter(None, (manifest_sha256, known_sha256)):
        if pinned != fetched.manifest_sha256:
            raise WeightError(
                f"{fetched.reference} has a manifest of sha256 {fetched.manifest_sha256[:12]}, "
                f"{pinned[:12]} was pinned; it is not the weight you mean"
            )
    return fetched


def fetched_folder(reference: str) -> Path | None:
    """Where ``ORG/NAME[@REVISION]`` lies on this machine, or None; without a request.

    Raises:
        WeightError: If it is not what was fetched.
    """
    repo, revision = split_reference(reference)
    return _from_disk(repo, revision).folder if _lock(repo, revision).is_file() else None


def fetched_folders() -> dict[str, Path]:
    """Every commit that was fetched, by reference; unverified."""
    return {
        f"{'/'.join(folder.parts[-3:-1])}@{folder.name}": folder
        for folder in sorted((store.home() / ".hub").glob("*/*/*"))
        if is_commit(folder.name)
    }


def _resolved(repo: str, revision: str | None) -> FetchedWeight:
    """From the disk if a commit is asked for or nobody answers; else as the Hub says now."""
    if is_offline() or (is_commit(revision) and _lock(repo, revision).is_file()):
        return _from_disk(repo, revision)
    try:
        hub = Hub()
        state = hub.state(repo, revision)
    except HubUnreachableError as error:
        if not _lock(repo, revision).is_file():
            raise
        fetched = _from_disk(repo, revision)
        log.warning("%s; using %s, which was fetched before", error, fetched.reference)
        return fetched
    if not _folder(repo, state.commit).is_dir():
        _download(hub, repo, state)
    if not _lock(repo, state.commit).is_file():  # the last step of fetching it
        _write_lock(_on_disk(repo, _folder(repo, state.commit)), state.commit)
    fetched = _from_disk(repo, state.commit)
    if revision != state.commit:
        _write_lock(fetched, revision)
    return fetched


def _from_disk(repo: str, revision: str | None) -> FetchedWeight:
    lock = _lock(repo, revision)
    if not lock.is_file():
        raise WeightError(
            f"{repo}{f'@{revision}' if revision else ''} was not fetched to {store.home()}; "
            "run `pcd-hub fetch` with the network once, or set PCD_HUB_HOME to where it lies"
        )
    try:
        reference, _, expected = lock.read_text().strip().partition(" ")
    except ValueError:  # no text
        reference = expected = ""
    commit = reference.rpartition("@")[2]
    if not is_commit(commit):
        raise WeightError(f"{lock} is damaged; delete it and fetch {repo} again")
    fetched = _on_disk(repo, _folder(repo, commit))
    if fetched.lock_line != f"{reference} {expected}":
        raise WeightError(
            f"{fetched.folder} is not what was fetched ({lock} pins {expected[:12]}); "
            "delete the folder and fetch it again"
        )
    return fetched


def _on_disk(repo: str, folder: Path) -> FetchedWeight:
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        raise WeightError(f"{manifest} is missing; delete the folder and fetch {repo} again")
    return FetchedWeight(
        repo=repo, commit=folder.name, manifest_sha256=sha256(manifest), folder=folder
    )


def _download(hub: Hub, repo: str, state: RepoState, *, anew: bool = False) -> None:
    """All files of one commit into a draft, checked there, then moved into place at once."""
    what = f"{repo}@{state.commit}"
    sizes = {n: file.size for n, file in state.files.items() if n not in HUB_ONLY_FILES}
    check_file_names(sizes, what=what)
    check_total(sum(file.size for file in state.files.values()), repo)
    if MANIFEST_FILE not in sizes:
        raise WeightError(
            f"{what} has no {MANIFEST_FILE}: it was not published by pcd_hub and cannot be "
            f'verified. timm.create_model("hf-hub:{what}", pretrained=True) loads it unverified'
        )
    target = _folder(repo, state.commit)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    try:
        finished = _fill(hub, what, sizes, draft)
        if anew:
            os.rename(target, draft / "damaged")  # noqa: PTH104
        try:
            os.rename(finished, target)  # noqa: PTH104 - Path.rename reads as a move into a folder
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what fetches that were killed left behind."""
    for draft in folder.glob(".draft-*"):
        if time.time() - draft.stat().st_mtime > _DRAFT_SECONDS:
            shutil.rmtree(draft, ignore_errors=True)


def _fill(hub: Hub, what: str, sizes: Mapping[str, int], draft: Path) -> Path:
    """The folder of all files, verified; what arrived damaged is fetched once more."""
    try:
        return _attempt(hub, what, sizes, draft / "1")
    except WeightError as error:
        log.warning("%s; fetching it once more", error)
        return _attempt(hub, what, sizes, draft / "2")


def _attempt(hub: Hub, what: str, sizes: Mapping[str, int], draft: Path) -> Path:
    repo, commit = what.split("@")
    incoming, finished = draft / "incoming", draft / "finished"
    finished.mkdir(parents=True)

    def get(path: str) -> None:
        arrived = hub.download(repo, commit, path, incoming, size=sizes[path])
        arrived.replace(finished / path)

    get(MANIFEST_FILE)
    entries = read_manifest(finished)["files"]
    check_total(sum(entry["size"] for entry in entries), repo)
    listed = {entry["path"] for entry in entries}
    if odds := listed ^ (sizes.keys() - {MANIFEST_FILE}):
        odd = min(odds)
        raise WeightError(
            f"{what}: {odd!r} is {'missing' if odd in listed else 'not in the manifest'}; "
            "ask its publisher to run `pcd-hub publish` again"
        )
    for path in sorted(listed):
        get(path)
    card = next((entry for entry in entries if entry["path"] == CARD_FILE), None)
    if card and sha256(finished / CARD_FILE) != card["sha256"]:
        raise WeightError(
            f"{what}: {CARD_FILE} was edited on the Hub, or is damaged; its publisher can run "
            "`pcd-hub publish` again, or name the commit before the edit"
        )
    read_weight(finished, what=what)
    return finished


def _folder(repo: str, commit: str) -> Path:
    return store.home() / ".hub" / repo / commit


def _lock(repo: str, revision: str | None) -> Path:
    return store.home() / ".hub" / repo / "refs" / quote(revision or "main", safe="")


def _write_lock(fetched: FetchedWeight, revision: str | None) -> None:
    lock = _lock(fetched.repo, revision)
    lock.parent.mkdir(exist_ok=True)
    if lock.is_file() and lock.read_text() == fetched.lock_line + "\n":
        return
    handle, draft = tempfile.mkstemp(prefix=".", dir=lock.parent)
    with os.fdopen(handle, "w") as file:
        file.write(fetched.lock_line + "\n")
    Path(draft).chmod(0o644)
    Path(draft).replace(lock)
