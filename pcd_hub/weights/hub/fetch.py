"""From the Hub to this machine: one commit, every byte checked, all or nothing.

::

    <PCD_HUB_HOME>/.hub/ORG/NAME/<commit>/        the files of that commit
    <PCD_HUB_HOME>/.hub/ORG/NAME/refs/<revision>  "ORG/NAME@<commit> <sha256 of its manifest>"

What is fetched lies there for good and is used without the network (``HF_HUB_OFFLINE=1``). What is
no longer as the lock of its commit pins it, ``fetch`` brings back just so, or not at all.
"""

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from huggingface_hub import try_to_load_from_cache

from pcd_hub.errors import HubUnreachableError, WeightError
from pcd_hub.files.writable import writing
from pcd_hub.weights import store
from pcd_hub.weights.hub.address import is_commit, is_offline, split_reference
from pcd_hub.weights.hub.client import Hub, RepoState, check_total
from pcd_hub.weights.hub.published import reference_of
from pcd_hub.weights.layout import CARD_FILE, MANIFEST_FILE
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import read_manifest, read_plain, sha256
from pcd_hub.weights.safety import MAX_JSON_BYTES, check_file_names

log = logging.getLogger("pcd_hub")

HUB_ONLY_FILES = frozenset({".gitattributes"})
"""What the Hub itself puts into every repository."""
_DRAFT_SECONDS = 86_400
_MAX_LOCK_BYTES = 1000
_WRITE_REMEDY = "make room or a right to write there, or set PCD_HUB_HOME to another folder"


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
    its place. What was fetched before and is damaged or gone is fetched anew; its manifest must
    come back as it was.

    Args:
        name: ``ORG/NAME[@REVISION]``, or the name of a published weight (``resnet18.pcd``).
        manifest_sha256: What the manifest must hash to, if you pinned it.

    Raises:
        WeightError: If the name is unknown, or the files are damaged, also when they are fetched
            anew, or not of pcd_hub, or cannot be written here.
        HubError: If the Hub refuses it or cannot be reached, and it was not fetched before.
    """
    fetched = _found(name, manifest_sha256, mend=True)
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
    """As :func:`fetch`, but what lies here is neither verified, which its reader does, nor mended.

    Only a folder that is gone is fetched anew.
    """
    return _found(name, manifest_sha256, mend=False)


def _found(name: str, manifest_sha256: str | None, *, mend: bool) -> FetchedWeight:
    found = reference_of(name)
    if found is None:
        raise WeightError(
            f"{name} is not among the published weights; name its repository (ORG/{name}), or set "
            "PCD_HUB_ORG to the organisation that publishes it"
        )
    reference, known_sha256 = found
    repo, revision = split_reference(reference)
    fetched = _resolved(repo, revision, mend=mend)
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
    return _from_disk(repo, revision).folder if _locked(repo, revision) else None


def fetched_folders() -> dict[str, Path]:
    """Every commit that was fetched, by reference; unverified."""
    return {
        f"{'/'.join(folder.parts[-3:-1])}@{folder.name}": folder
        for folder in sorted((store.home() / ".hub").glob("*/*/*"))
        if is_commit(folder.name)
    }


def _resolved(repo: str, revision: str | None, *, mend: bool) -> FetchedWeight:
    """From the disk if a commit is asked for or nobody answers; else as the Hub says now."""
    if is_offline():
        return _from_disk(repo, revision)
    if is_commit(revision) and (fetched := _as_locked(repo, revision)):
        return fetched
    try:
        hub = Hub()
        state = hub.state(repo, revision)
    except HubUnreachableError as error:
        if not _locked(repo, revision):
            raise
        fetched = _from_disk(repo, revision)
        log.warning("%s; using %s, which was fetched before", error, fetched.reference)
        return fetched
    _settle(hub, repo, state, mend=mend)
    fetched = _from_disk(repo, state.commit)
    if revision != state.commit:
        _write_lock(fetched, revision)
    return fetched


def _as_locked(repo: str, revision: str | None) -> FetchedWeight | None:
    """What a lock pins, if that is what lies here."""
    if not _locked(repo, revision):
        return None
    try:
        return _from_disk(repo, revision)
    except WeightError as error:
        log.info("%s; asking the Hub", error)
        return None


def _settle(hub: Hub, repo: str, state: RepoState, *, mend: bool) -> None:
    """See to it that a commit's folder lies here, and that its lock pins it."""
    folder = _folder(repo, state.commit)
    with store.reading():
        is_there = folder.is_dir()
    if not is_there:
        _download(hub, repo, state)
    else:
        try:
            _check_settled(repo, state.commit)
        except WeightError as error:
            if not mend:
                raise
            log.warning("%s; fetching it anew", error)
            _download(hub, repo, state, anew=True)
    if not _locked(repo, state.commit):  # the last step of fetching it
        _write_lock(_on_disk(repo, folder), state.commit)


def _check_settled(repo: str, commit: str) -> None:
    """A folder is what its lock pins; one that has none yet, as its fetch was killed, is whole."""
    if _locked(repo, commit):
        _from_disk(repo, commit)
    else:
        read_weight(_folder(repo, commit), what=f"{repo}@{commit}")


def _from_disk(repo: str, revision: str | None) -> FetchedWeight:
    locked = _locked(repo, revision)
    if not locked:
        raise WeightError(
            f"{repo}{f'@{revision}' if revision else ''} was not fetched to {store.home()}; "
            "run `pcd-hub fetch` with the network once, or set PCD_HUB_HOME to where it lies"
        )
    fetched = _on_disk(repo, _folder(repo, locked.commit))
    if fetched.manifest_sha256 != locked.manifest_sha256:
        raise WeightError(
            f"{fetched.folder} is not what was fetched ({_lock(repo, revision)} pins "
            f"{locked.manifest_sha256[:12]}); {_remedy(repo, locked.commit)}"
        )
    return fetched


def _on_disk(repo: str, folder: Path) -> FetchedWeight:
    manifest = folder / MANIFEST_FILE
    try:
        raw = read_plain(manifest, most=MAX_JSON_BYTES)
    except OSError as error:
        raise WeightError(
            f"{manifest} is missing ({type(error).__name__}); {_remedy(repo, folder.name)}"
        ) from error
    return FetchedWeight(
        repo=repo,
        commit=folder.name,
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
        folder=folder,
    )


def _remedy(repo: str, commit: str) -> str:
    return f"run `pcd-hub fetch {repo}@{commit}` with the network"


def _download(hub: Hub, repo: str, state: RepoState, *, anew: bool = False) -> None:
    """All files of one commit into a draft, checked there, then moved into place at once."""
    what = f"{repo}@{state.commit}"
    sizes = _listed_sizes(what, repo, state)
    target = _folder(repo, state.commit)
    with writing(target.parent, remedy=_WRITE_REMEDY):
        store.make_folder(target.parent)
        _sweep(target.parent)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
        try:
            _put(_fill(hub, what, sizes, draft), target, anew=anew)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _listed_sizes(what: str, repo: str, state: RepoState) -> dict[str, int]:
    """Of the weight's files as the Hub lists them, if that may be a weight of ours."""
    sizes = {n: file.size for n, file in state.files.items() if n not in HUB_ONLY_FILES}
    check_file_names(sizes, what=what)
    check_total(sum(file.size for file in state.files.values()), repo)
    if MANIFEST_FILE not in sizes:
        raise WeightError(
            f"{what} has no {MANIFEST_FILE}: it was not published by pcd_hub and cannot be "
            f'verified. timm.create_model("hf-hub:{what}", pretrained=True) loads it unverified'
        )
    if sizes[MANIFEST_FILE] > MAX_JSON_BYTES:
        raise WeightError(
            f"{what}: {MANIFEST_FILE} has {sizes[MANIFEST_FILE]} bytes, at most {MAX_JSON_BYTES} "
            "are allowed; it was not published by pcd_hub"
        )
    return sizes


def _put(finished: Path, target: Path, *, anew: bool) -> None:
    """Move a finished folder into place; ``anew`` also over one that stands there, file by file.

    Whoever else does so at the same time moves the same bytes, and no file is ever missing.
    """
    try:
        os.rename(finished, target)  # noqa: PTH104 - Path.rename reads as a move into a folder
    except OSError:
        if not target.is_dir():  # else another process was faster, or it stood there before
            raise
    else:
        return
    if not anew:
        return
    for path in finished.iterdir():
        if (target / path.name).is_dir():  # over which no file can be moved
            shutil.rmtree(target / path.name, ignore_errors=True)
        path.replace(target / path.name)


def _sweep(folder: Path) -> None:
    """Remove what fetches that were killed left behind."""
    for draft in folder.glob(".draft-*"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - draft.stat().st_mtime > _DRAFT_SECONDS:
                shutil.rmtree(draft, ignore_errors=True)


def _fill(hub: Hub, what: str, sizes: Mapping[str, int], draft: Path) -> Path:
    """The folder of all files, verified; what arrived damaged is fetched once more."""
    try:
        return _attempt(hub, what, sizes, draft / "1", with_cache=True)
    except WeightError as error:
        log.warning("%s; fetching it once more", error)
        return _attempt(hub, what, sizes, draft / "2", with_cache=False)


def _attempt(
    hub: Hub, what: str, sizes: Mapping[str, int], draft: Path, *, with_cache: bool
) -> Path:
    repo, commit = what.split("@")
    incoming, finished = draft / "incoming", draft / "finished"
    finished.mkdir(parents=True)
    finished.chmod(0o755)  # whatever the umask: who may enter the store may read it

    def get(path: str, size: int) -> None:
        arrived = hub.download(repo, commit, path, incoming, size=size)
        arrived.chmod(0o644)
        arrived.replace(finished / path)

    get(MANIFEST_FILE, sizes[MANIFEST_FILE])
    _check_pin(repo, commit, sha256(finished / MANIFEST_FILE))
    entries = read_manifest(finished)["files"]
    _check_entries(entries, sizes.keys() - {MANIFEST_FILE}, what=what)
    for entry in entries:  # of which the Hub may list any size
        path, size = entry["path"], entry["size"]
        if not (with_cache and _copy_cached(repo, commit, finished / path, size=size)):
            get(path, size)
    card = next((entry for entry in entries if entry["path"] == CARD_FILE), None)
    if card and sha256(finished / CARD_FILE) != card["sha256"]:
        raise WeightError(
            f"{what}: {CARD_FILE} was edited on the Hub, or is damaged; its publisher can run "
            "`pcd-hub publish` again, or name the commit before the edit"
        )
    read_weight(finished, what=what)
    return finished


def _copy_cached(repo: str, commit: str, target: Path, *, size: int) -> bool:
    """Copy a file that huggingface_hub has downloaded before, if it has; unverified."""
    found = try_to_load_from_cache(repo, target.name, revision=commit)
    with suppress(OSError):  # then it is downloaded
        if isinstance(found, str) and Path(found).is_file() and Path(found).stat().st_size == size:
            shutil.copyfile(found, target)
            target.chmod(0o644)
            return True
    return False


def _check_pin(repo: str, commit: str, found: str) -> None:
    """A commit never changes: its manifest comes back as it was when it was first fetched."""
    locked = _locked(repo, commit)
    if locked and locked.manifest_sha256 != found:
        raise WeightError(
            f"{repo}@{commit}: the Hub sends a manifest of sha256 {found[:12]}, but "
            f"{_lock(repo, commit)} pins {locked.manifest_sha256[:12]}; ask its publisher, or "
            "delete that lock if you trust what comes now"
        )


def _check_entries(entries: list[dict[str, Any]], names: Collection[str], *, what: str) -> None:
    """The manifest lists the files that the Hub lists, and no more bytes than any weight has."""
    check_total(sum(entry["size"] for entry in entries), what)
    listed = {entry["path"] for entry in entries}
    if odds := listed.symmetric_difference(names):
        odd = min(odds)
        raise WeightError(
            f"{what}: {odd!r} is {'missing' if odd in listed else 'not in the manifest'}; "
            "ask its publisher to run `pcd-hub publish` again"
        )


def _folder(repo: str, commit: str) -> Path:
    return store.home() / ".hub" / repo / commit


# What was fetched, in a line.


class _Locked(NamedTuple):
    """What a lock pins."""

    commit: str
    manifest_sha256: str


def _lock(repo: str, revision: str | None) -> Path:
    return store.home() / ".hub" / repo / "refs" / quote(revision or "main", safe="")


def _locked(repo: str, revision: str | None) -> _Locked | None:
    """What the lock of a revision pins; None if there is none.

    Raises:
        WeightError: If the lock is damaged.
    """
    lock = _lock(repo, revision)
    try:
        raw = read_plain(lock, most=_MAX_LOCK_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightError(f"{lock} cannot be read: {error.strerror}; mend its rights") from error
    line = rb"%b@([0-9a-f]{40}) ([0-9a-f]{64})\n?" % re.escape(repo).encode()
    found = re.fullmatch(line, raw)
    if not found or (is_commit(revision) and found[1].decode() != revision):
        raise WeightError(f"{lock} is damaged; delete it and fetch {repo} again")
    return _Locked(found[1].decode(), found[2].decode())


def _write_lock(fetched: FetchedWeight, revision: str | None) -> None:
    lock, line = _lock(fetched.repo, revision), f"{fetched.lock_line}\n".encode()
    with suppress(OSError):
        if read_plain(lock, most=_MAX_LOCK_BYTES) == line:
            return
    with writing(lock, remedy=_WRITE_REMEDY):
        store.make_folder(lock.parent)
        handle, draft = tempfile.mkstemp(prefix=".", dir=lock.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(line)
            Path(draft).chmod(0o644)
            Path(draft).replace(lock)
        finally:
            Path(draft).unlink(missing_ok=True)
