"""From a finished weight to a Hub repository: checked, one commit, read back, then opened."""

import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

from pcd_hub.errors import HubError, HubNotFoundError, HubUnreachableError, WeightError
from pcd_hub.files.writable import temporary_folder, writing
from pcd_hub.weights import store
from pcd_hub.weights.card import HUB_LICENSES
from pcd_hub.weights.create import build_model, golden_features
from pcd_hub.weights.export import describe
from pcd_hub.weights.hub.address import is_commit, redacted, split_reference
from pcd_hub.weights.hub.client import Hub, RemoteFile, RepoState
from pcd_hub.weights.hub.fetch import HUB_ONLY_FILES
from pcd_hub.weights.hub.published import PublishedWeight
from pcd_hub.weights.layout import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from pcd_hub.weights.load import ReadWeight, read_weight
from pcd_hub.weights.manifest import check_listed_size, read_manifest, sha256
from pcd_hub.weights.record import NOT_STATED, WeightRecord
from pcd_hub.weights.safety import check_file_names

log = logging.getLogger("pcd_hub")

_WRITTEN_ANEW = frozenset({CONFIG_FILE, CARD_FILE, MANIFEST_FILE})


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What :func:`publish` did, or would do."""

    repo: str
    commit: str | None
    """None after a dry run on a repository that does not exist."""
    public: bool
    changes: tuple[str, ...]
    """``+ path``, ``~ path``, ``- path``; empty if the Hub held the same already."""
    folder: Path | None
    """What a dry run wrote."""
    record: PublishedWeight | None
    """For the package's own list; None after a dry run."""


def publish(
    run_or_name: str | Path,
    repo: str,
    *,
    private: bool = False,
    public: bool = False,
    license: str | None = None,  # noqa: A002 - its name everywhere
    teacher_license: str | None = None,
    data_license: str | None = None,
    license_link: str | None = None,
    dry_run: Path | None = None,
) -> Publication:
    """Publish a weight under ``ORG/NAME``.

    A new repository is made private, gets one commit, is downloaded again and compared byte by
    byte, and is then opened unless ``private``. A public one gets its commit in the open, and is
    compared then. Running it again changes nothing and reports the same commit.

    Args:
        run_or_name: A run's folder, an export's folder, or a name in the local store.
        repo: ``ORG/NAME``; best ``ORG/<name of the weight>``, which ``PCD_HUB_ORG`` finds.
        private: Leave it private.
        public: Open a repository that exists and is private.
        license: Of the weights, as ``apache-2.0``. Needed unless the record states it, as are the
            teacher's and the data's, each an own decision.
        teacher_license: Of the teacher's weights.
        data_license: Of the training images.
        license_link: Address of the licence's text, if the Hub has no name for it.
        dry_run: Write what would be published into this new folder, compare it with the Hub, and
            change nothing there.

    Raises:
        WeightError: If the weight is damaged, its record is dirty or incomplete, or a licence is
            missing or contradicts the record.
        HubError: If the Hub refuses, holds foreign files there, or gives back other bytes.
    """
    repo, revision = split_reference(repo)
    if revision or (private and public):
        raise WeightError(
            f"{repo} is published as one commit on its main branch, either private or public"
        )
    source = finished_export(run_or_name)
    licenses = {"weights": license, "teacher": teacher_license, "data": data_license}
    if dry_run and dry_run.exists():
        raise WeightError(f"{dry_run} exists already; name a new folder for the dry run")
    with temporary_folder() as scratch:
        folder = scratch / "weight"
        folder.mkdir()
        weight = _prepare(source, folder, repo, licenses, license_link)
        if not dry_run:
            return _published(repo, folder, weight, private=private, public=public)
        plan = _compared(repo, folder, private=private, public=public)
        with writing(dry_run, remedy="name another folder"):
            dry_run.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder, dry_run)
        return replace(plan, folder=dry_run)


# What gets published.


def finished_export(run_or_name: str | Path) -> Path:
    """The folder of a finished weight.

    Args:
        run_or_name: A run's folder, whose last export it is, an export's folder, or a name in the
            local store.

    Raises:
        WeightError: If there is none.
    """
    path = Path(run_or_name).expanduser()
    if path.is_dir():
        exports = [p for p in path.iterdir() if re.fullmatch(r"export(-\d+)?", p.name)]
        folder = max(exports, key=lambda p: (len(p.name), p.name), default=path)
    elif store.is_name(str(run_or_name)) and (found := store.where(str(run_or_name))):
        folder = found
    else:
        raise WeightError(
            f"{run_or_name} is no run's folder, and {store.home()} holds no weight of that name; "
            f"it holds {', '.join(store.names()) or 'none'}"
        )
    if not (folder / MANIFEST_FILE).is_file():
        raise WeightError(f"{folder} holds no {MANIFEST_FILE}; did the run finish?")
    return folder


def _prepare(
    source: Path,
    folder: Path,
    repo: str,
    licenses: Mapping[str, str | None],
    license_link: str | None,
) -> ReadWeight:
    """Fill ``folder`` with exactly what will be published, and verify it as a stranger would."""
    _check_folder(source)
    for path in source.iterdir():
        _copy_plain(path, folder / path.name)
    # The copies are verified, not the source: it may change meanwhile.
    copied = read_weight(folder, what=str(source))
    _check_record(copied.record)
    record = _with_licenses(copied.record, licenses, license_link)
    for name in _WRITTEN_ANEW:
        (folder / name).unlink(missing_ok=True)
    describe(folder, record, copied.config, repo=repo, license_link=license_link)
    _check_secrets(folder)
    return read_weight(folder, what=repo)


def _copy_plain(source: Path, target: Path) -> None:
    """Copy a file, but not what a link points to, nor what comes out of a pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(source, flags)
    except OSError as error:
        raise WeightError(f"{source} is no plain file that can be read: {error}") from error
    with os.fdopen(handle, "rb") as reader, target.open("wb") as writer:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise WeightError(
                f"{source} is no plain file; only the files of a weight are published"
            )
        shutil.copyfileobj(reader, writer)


def _check_folder(folder: Path) -> None:
    """Only plain files, only those of a weight, and none larger than it should be."""
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_file():
            raise WeightError(f"{path} is no plain file; only the files of a weight are published")
    check_file_names((path.name for path in folder.iterdir()), what=str(folder))
    entries = read_manifest(folder)["files"]
    listed = {entry["path"] for entry in entries} | {MANIFEST_FILE}
    if foreign := sorted({path.name for path in folder.iterdir()} - listed):
        raise WeightError(f"{folder / foreign[0]} is not in the manifest; move it away")
    for entry in entries:
        check_listed_size(folder, entry)


def _check_record(record: WeightRecord) -> None:
    if not is_commit(str(record.code.get("commit"))):
        raise WeightError(
            f"the record of {record.name} names no commit of the code that made it; run the recipe "
            "from a git clone"
        )
    if record.code.get("dirty") is not False:
        raise WeightError(
            f"{record.name} was made by code with uncommitted changes (record: code.dirty); "
            "commit them and run the recipe again, or nobody can know what made it"
        )
    for what, facts, keys in (
        ("teacher", record.teacher, ("source", "sha256")),
        ("data", record.data, ("source", "fingerprint")),
        ("model", record.model, ("parameters", "image_size")),
    ):
        if missing := [key for key in keys if not facts.get(key)]:
            raise WeightError(
                f"the record of {record.name} is not complete: no {what}.{missing[0]}; "
                "export the weight again"
            )


def _with_licenses(
    record: WeightRecord, given: Mapping[str, str | None], license_link: str | None
) -> WeightRecord:
    """The record with every licence stated; what it states already may not be contradicted."""
    chain = dict(record.licenses)
    for what, choice in given.items():
        stated = chain.get(what, NOT_STATED)
        option = "--license" if what == "weights" else f"--{what}-license"
        if choice and stated not in {NOT_STATED, choice}:
            raise WeightError(
                f"{option} {choice} contradicts the record of {record.name}, which says {stated}"
            )
        if stated == NOT_STATED and not choice:
            raise WeightError(
                f"the licence of the {what} of {record.name} is not stated; say it by {option}, "
                "as apache-2.0. The teacher's may bind the student"
            )
        chain[what] = choice or stated
    if chain["weights"] not in HUB_LICENSES and not license_link:
        raise WeightError(
            f"the Hub has no licence {chain['weights']!r}; name the address of its text by "
            "--license-link, or use an identifier such as apache-2.0, mit, cc-by-nc-4.0"
        )
    return replace(record, licenses=chain)


def _check_secrets(folder: Path) -> None:
    secrets = [rb"hf_[A-Za-z0-9]{20,}", rb"://[^/\s:@\"]+:[^/\s@\"]+@"]
    if token := get_token():
        secrets.append(re.escape(token.strip().encode()))
    for path in folder.iterdir():
        if path.name != WEIGHTS_FILE and re.search(b"|".join(secrets), path.read_bytes()):
            raise WeightError(
                f"{path.name} holds what looks like a Hub token or a password, perhaps from the "
                "run's settings; revoke it and run the recipe without it"
            )


# What the Hub holds.


def _compared(repo: str, folder: Path, *, private: bool, public: bool) -> Publication:
    hub = Hub()
    try:
        state = hub.state(repo)
    except HubNotFoundError:
        state = None
    if state:
        _check_visibility(repo, state, is_new=False, private=private, public=public)
    changes = _changes(folder, state.files if state else {}, repo)
    return Publication(
        repo=repo,
        commit=state.commit if state else None,
        public=bool(state and not state.private),
        changes=changes,
        folder=None,
        record=None,
    )


def _changes(folder: Path, remote: Mapping[str, RemoteFile], repo: str) -> tuple[str, ...]:
    """What a commit would do: ``+`` add, ``~`` replace, ``-`` remove.

    Raises:
        HubError: If the repository holds what is no weight's file.
    """
    local = {path.name: path for path in folder.iterdir()}
    others = set(remote) - set(local) - HUB_ONLY_FILES
    if licences := sorted(name for name in others if name.startswith("LICENSE")):
        raise HubError(
            f"{repo} holds {licences[0]}, which is not in the weight's folder; put it there too, "
            "or delete it on the Hub"
        )
    try:
        check_file_names(others, what=repo)
    except WeightError as error:
        raise HubError(f"{error}; publish under another name, or delete that file first") from None
    marks = [
        f"{'~' if name in remote else '+'} {name}"
        for name, path in local.items()
        if name not in remote or not _is_same(path, remote[name])
    ]
    return tuple(sorted([*marks, *(f"- {name}" for name in others)], key=lambda mark: mark[2:]))


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
    changes = _changes(folder, state.files, repo)
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
    """What is there now; a new private repository if nothing is."""
    with suppress(HubNotFoundError):
        return hub.state(repo), False
    is_new = True
    try:
        is_new = hub.create(repo)
    except HubUnreachableError as error:  # it may stand all the same
        log.info("%s; looking whether it stands", error)
    return hub.state(repo), is_new


def _check_visibility(
    repo: str, state: RepoState, *, is_new: bool, private: bool, public: bool
) -> None:
    if private and not state.private:
        raise HubError(f"{repo} is public already; make it private in its settings first")
    if state.private and not is_new and not private and not public:
        raise HubError(
            f"{repo} exists and is private, perhaps from a run that was interrupted; "
            "say --private to keep it so, or --public to open it"
        )


def _commit(
    hub: Hub, repo: str, folder: Path, changes: Iterable[str], state: RepoState, *, message: str
) -> RepoState:
    """One commit with all changes. An error whose commit stands all the same is none."""
    operations = [
        CommitOperationDelete(mark[2:])
        if mark.startswith("-")
        else CommitOperationAdd(mark[2:], (folder / mark[2:]).read_bytes())
        for mark in changes
    ]
    failure: HubError | None = None
    try:
        hub.commit(repo, operations, message=message, parent=state.commit)
    except HubError as error:
        failure = error
    after = hub.state(repo)
    if left := _changes(folder, after.files, repo):
        raise failure or HubError(
            f"{repo} does not hold what was sent ({', '.join(left)}); was it changed meanwhile? "
            "Run the command again"
        )
    return after


def _check_back(hub: Hub, repo: str, state: RepoState, folder: Path) -> None:
    """Download every file and compare it byte by byte."""
    remedy = (
        "it is still private; run the command again with --private or --public"
        if state.private
        else "it is public: repair it by running the command again"
    )
    with temporary_folder() as scratch:
        for path in sorted(folder.iterdir()):
            size = path.stat().st_size
            back = hub.download(repo, state.commit, path.name, scratch, size=size)
            if back.read_bytes() != path.read_bytes():
                raise HubError(
                    f"{redacted(hub.endpoint)}/{repo} gives back another {path.name} than was "
                    f"sent; {remedy}"
                )


def _list_entry(repo: str, folder: Path, weight: ReadWeight) -> PublishedWeight:
    """What the list will say, but for the commit."""
    record = weight.record
    return PublishedWeight(
        name=record.name,
        repo=repo,
        commit="",
        manifest_sha256=sha256(folder / MANIFEST_FILE),
        weights_sha256=sha256(folder / WEIGHTS_FILE),
        license=record.licenses["weights"],
        parameters=record.model["parameters"],
        features=golden_features(build_model(weight), record.model["image_size"]),
    )
