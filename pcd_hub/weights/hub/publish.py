"""Publish a finished weight: check, commit, download and compare, then make public."""

import hashlib
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, get_token

from pcd_hub.errors import HubError, HubNotFoundError, HubUnreachableError, WeightError
from pcd_hub.files.writable import temporary_folder, writing
from pcd_hub.weights.catalogue import finished_export
from pcd_hub.weights.create import build_model, golden_features
from pcd_hub.weights.export import describe
from pcd_hub.weights.hub.address import redacted, split_reference
from pcd_hub.weights.hub.client import Hub, RemoteFile, RepoState
from pcd_hub.weights.hub.publishable import check_record, with_licenses
from pcd_hub.weights.hub.published import PublishedWeight
from pcd_hub.weights.layout import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from pcd_hub.weights.load import ReadWeight, read_weight
from pcd_hub.weights.local_paths import without_local_paths
from pcd_hub.weights.manifest import files_in, read_listed, read_manifest, sha256

log = logging.getLogger("pcd_hub")

_DESCRIPTIONS = frozenset({CONFIG_FILE, CARD_FILE, MANIFEST_FILE})


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Result of :func:`publish`, or of its dry run."""

    repo: str
    commit: str | None
    """None after a dry run if the repository does not exist."""
    public: bool
    changes: tuple[str, ...]
    """``+ path`` (added), ``~ path`` (replaced); empty if the Hub already has the same files."""
    folder: Path | None
    """The folder written by a dry run."""
    record: PublishedWeight | None
    """Entry for the package's list; None after a dry run."""


def publish(
    run_or_name: str | Path,
    repo: str,
    *,
    private: bool = False,
    public: bool = False,
    license: str | None = None,  # noqa: A002 - the usual name
    teacher_license: str | None = None,
    data_license: str | None = None,
    start_license: str | None = None,
    license_link: str | None = None,
    dry_run: Path | None = None,
) -> Publication:
    """Publish a weight under ``ORG/NAME``.

    A new repository is private at first. It gets one commit, is downloaded and compared byte by
    byte, and is then made public unless ``private``. Only files in the weight's manifest are
    uploaded; other files in the repository are left alone. Publishing the same weight again changes
    nothing and returns the same commit.

    Args:
        run_or_name: A run's folder, an export's folder, or a name in the local store.
        repo: ``ORG/NAME``; ``PCD_HUB_ORG`` finds it only if ``NAME`` is the weight's name.
        private: Keep the repository private.
        public: Make an existing private repository public.
        license: Licence of the weights (``apache-2.0``); required unless the record states it.
        teacher_license: Licence of the teacher's weights; required unless it is in the record.
        data_license: Licence of the training images; required unless it is in the record.
        start_license: The same for the weights that the training started from, if any.
        license_link: URL of the licence's text, if the Hub has no identifier for it.
        dry_run: Write the files to this new folder and compare them with the Hub, without
            publishing anything.

    Raises:
        WeightError: If the weight is damaged, its record is incomplete or from uncommitted code, or
            a licence is missing or contradicts the record.
        HubError: If the Hub refuses access, cannot be reached, or returns different bytes.
    """
    repo, revision = split_reference(repo)
    if revision or (private and public):
        raise WeightError(
            f"{repo} is published as one commit on its main branch, either private or public: give "
            "no @REVISION, and at most one of --private and --public"
        )
    source = finished_export(run_or_name)
    given = (license, teacher_license, data_license, start_license)
    licenses: dict[str, str | None] = dict(
        zip(("weights", "teacher", "data", "start"), given, strict=True)
    )
    if dry_run and dry_run.exists():
        raise WeightError(f"{dry_run} exists already; remove it, or name another --out")
    with temporary_folder() as scratch:
        folder = scratch / "weight"
        folder.mkdir()
        weight = _prepare(source, folder, repo, licenses, license_link)
        if not dry_run:
            return _published(repo, folder, weight, private=private, public=public)
        plan = _compared(repo, folder, private=private, public=public)
        with writing(dry_run, remedy="use another folder"):
            dry_run.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder, dry_run)
        return replace(plan, folder=dry_run)


# The folder to publish.


def _prepare(
    source: Path,
    folder: Path,
    repo: str,
    licenses: Mapping[str, str | None],
    license_link: str | None,
) -> ReadWeight:
    """Fill ``folder`` with the files to publish: verified copies, and a new card and manifest."""
    weight = read_weight(source)
    check_record(weight.record)
    entries = read_manifest(source)["files"]
    named = {entry["path"] for entry in entries} | {MANIFEST_FILE}
    for path in sorted({path.name for path in source.iterdir()} - {n.split("/")[0] for n in named}):
        log.warning("%s is not published: the manifest does not name it", source / path)
    for entry in entries:
        if entry["path"] not in _DESCRIPTIONS:
            (folder / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / entry["path"]).write_bytes(read_listed(source, entry))
    record = without_local_paths(with_licenses(weight.record, licenses, license_link))
    describe(folder, record, weight.config, repo=repo, license_link=license_link)
    _check_secrets(folder)
    return read_weight(folder, what=repo)


def _check_secrets(folder: Path) -> None:
    secrets = [rb"hf_[A-Za-z0-9]{20,}", rb"://[^/\s:@\"]+:[^/\s@\"]+@"]
    if token := get_token():
        secrets.append(re.escape(token.strip().encode()))
    for name, path in files_in(folder).items():
        if name != WEIGHTS_FILE and re.search(b"|".join(secrets), path.read_bytes()):
            raise WeightError(
                f"{name} contains what looks like a Hub token or a password, perhaps from the "
                "run's settings; revoke it and run the recipe without it"
            )


# The repository.


def _compared(repo: str, folder: Path, *, private: bool, public: bool) -> Publication:
    hub = Hub()
    try:
        state = hub.state(repo)
    except HubNotFoundError:
        state = None
    if state:
        _check_visibility(repo, state, is_new=False, private=private, public=public)
    changes = _changes(folder, state.files if state else {})
    return Publication(
        repo=repo,
        commit=state.commit if state else None,
        public=bool(state and not state.private),
        changes=changes,
        folder=None,
        record=None,
    )


def _changes(folder: Path, remote: Mapping[str, RemoteFile]) -> tuple[str, ...]:
    """List the files that a commit would add (``+``) or replace (``~``)."""
    return tuple(
        f"{'~' if name in remote else '+'} {name}"
        for name, path in files_in(folder).items()
        if name not in remote or not _is_same(path, remote[name])
    )


def _is_same(path: Path, remote: RemoteFile) -> bool:
    if remote.sha256:
        return sha256(path) == remote.sha256
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False)
    return blob.hexdigest() == remote.blob


def _published(
    repo: str, folder: Path, weight: ReadWeight, *, private: bool, public: bool
) -> Publication:
    hub = Hub()
    state, is_new = _present_state(hub, repo)
    _check_visibility(repo, state, is_new=is_new, private=private, public=public)
    changes = _changes(folder, state.files)
    entry = _list_entry(repo, folder, weight)
    if changes:
        state = _commit(hub, repo, folder, changes, state, message=f"Publish {entry.name}")
    _check_back(hub, repo, state, folder)
    if state.private and not private:
        hub.open_to_public(repo)
    return Publication(
        repo=repo,
        commit=state.commit,
        public=not (state.private and private),
        changes=changes,
        folder=None,
        record=replace(entry, commit=state.commit),
    )


def _present_state(hub: Hub, repo: str) -> tuple[RepoState, bool]:
    """Return the repository's state, and True if the repository had to be created (private)."""
    with suppress(HubNotFoundError):
        return hub.state(repo), False
    is_new = True
    try:
        is_new = hub.create(repo)
    except HubUnreachableError as error:  # it may have been created nevertheless
        log.info("%s; checking whether it exists", error)
    return hub.state(repo), is_new


def _check_visibility(
    repo: str, state: RepoState, *, is_new: bool, private: bool, public: bool
) -> None:
    if private and not state.private:
        raise HubError(f"{repo} is public already; make it private in its settings first")
    if state.private and not is_new and not private and not public:
        raise HubError(
            f"{repo} exists and is private, perhaps because publishing was interrupted; add "
            "--private to keep it private, or --public to make it public"
        )


def _commit(
    hub: Hub, repo: str, folder: Path, changes: Iterable[str], state: RepoState, *, message: str
) -> RepoState:
    """Make one commit; ignore an error if the commit was made nevertheless."""
    operations = [CommitOperationAdd(m[2:], (folder / m[2:]).read_bytes()) for m in changes]
    failure: HubError | None = None
    try:
        hub.commit(repo, operations, message=message, parent=state.commit)
    except HubError as error:
        failure = error
    after = hub.state(repo)
    if left := _changes(folder, after.files):
        raise failure or HubError(
            f"{repo} does not hold what was sent ({', '.join(left)}): it changed in the meantime; "
            "run the command again"
        )
    return after


def _check_back(hub: Hub, repo: str, state: RepoState, folder: Path) -> None:
    """Download every file and compare it with what was uploaded."""
    remedy = (
        "it is still private; run the command again with --private or --public"
        if state.private
        else "it is public: run the command again to repair it"
    )
    with temporary_folder() as scratch:
        for name, path in files_in(folder).items():
            size = path.stat().st_size
            back = hub.download(repo, state.commit, name, scratch, size=size)
            if back.read_bytes() != path.read_bytes():
                raise HubError(
                    f"{redacted(hub.endpoint)}/{repo} returned another {name} than was "
                    f"sent; {remedy}"
                )


def _list_entry(repo: str, folder: Path, weight: ReadWeight) -> PublishedWeight:
    """Return the entry for the package's list, without the commit."""
    record = weight.record
    return PublishedWeight(
        name=record.name,
        repo=repo,
        commit="",
        manifest_sha256=sha256(folder / MANIFEST_FILE),
        weights_sha256=sha256(folder / WEIGHTS_FILE),
        license=record.licenses["weights"],
        parameters=record.model["parameters"],
        features=golden_features(
            build_model(weight),
            record.model["image_size"],
            in_chans=weight.config.get("model_args", {}).get("in_chans", 3),
        ),
    )
