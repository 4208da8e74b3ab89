"""The Hugging Face Hub, as far as one weight's life needs it: what is there, download, commit.

The real client does the talking; it does not check what it downloads, falls back to a cache where
a token is refused, may wait for minutes, and speaks in three libraries' exceptions. So nothing here
goes through its cache, nothing waits in silence, and every failure is a ``HubError`` that names the
repository and says what to do.
"""

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    get_token,
)
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import close_session

from pcd_hub.errors import (
    HubError,
    HubNotFoundError,
    HubUnreachableError,
    PCDHubError,
)
from pcd_hub.files.strict_json import printable, shown
from pcd_hub.weights.hub.address import check_endpoint, check_token, is_commit, is_offline, redacted

log = logging.getLogger("pcd_hub")

CLIENT_THREAD = "pcd-hub client"
"""Name of the threads in which the client works."""
_TIMEOUT_SECONDS = 10.0
_SILENCE_SECONDS = 25.0
_BYTES_PER_SECOND = 50_000  # what an upload must keep up with
_ATTEMPTS = 3
_PATIENCE_SECONDS = 5.0
_OUR_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE}
_BYTES_AT_MOST = 4 * 1024**3
_BYTES_BESIDE = 1024**2  # what the client itself writes beside a file

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a repository, as the Hub describes it."""

    size: int
    blob: str
    """Git's sha1 of the content; of the pointer, if the file is kept as LFS."""
    sha256: str | None
    """Of an LFS file's content."""


@dataclass(frozen=True, kw_only=True)
class RepoState:
    """A repository at one commit."""

    commit: str
    private: bool
    files: dict[str, RemoteFile]


class Hub:
    """A connection to the Hub that ``HF_ENDPOINT`` names, with the user's token if there is one."""

    def __init__(self) -> None:
        """Check the surroundings, without a request.

        Raises:
            HubError: If the endpoint or the token is malformed.
        """
        from pcd_hub import __version__  # noqa: PLC0415 - the package imports this file

        self.endpoint = check_endpoint(constants.ENDPOINT)
        self._token = check_token(get_token())
        self._api = HfApi(
            endpoint=self.endpoint,
            token=self._token or False,
            library_name="pcd_hub",
            library_version=__version__,
        )

    def state(self, repo: str, revision: str | None = None) -> RepoState:
        """The repository at ``revision`` (its default branch if not given): commit and files.

        Raises:
            HubError: If it is not there for this token, or what is answered is none: a commit, a
                name, a size below 0.
            HubUnreachableError: If nobody answers, or the network is switched off.
        """

        def attempt() -> ModelInfo:
            with self._said(repo, "read"):
                return self._api.model_info(
                    repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
                )

        info = _patiently(attempt)
        commit = str(info.sha)
        if not is_commit(commit) or (is_commit(revision) and commit != revision):
            raise HubError(
                f"{repo}: {self.endpoint} answers the commit {commit[:60]!r}"
                f"{f', asked was {revision}' if revision else ''}"
            )
        try:
            files = {
                sibling.rfilename: RemoteFile(
                    size=_size(sibling),
                    blob=str(sibling.blob_id),
                    sha256=sibling.lfs.sha256 if sibling.lfs else None,
                )
                for sibling in info.siblings or ()
            }
        except (TypeError, ValueError) as error:
            raise HubError(
                f"{repo}: {self.endpoint} answers sizes or names that are none "
                f"({_first_line(error)}); is it a Hub?"
            ) from None
        return RepoState(commit=commit, private=bool(info.private), files=files)

    def download(self, repo: str, commit: str, path: str, folder: Path, *, size: int) -> Path:
        """Get one file into ``folder``, which belongs to the caller.

        Raises:
            HubError: If it is not there for this token, or more arrives than ``size``, which
                whoever knows the file has stated.
            HubUnreachableError: If it did not come whole in three attempts.
        """
        before = _bytes_in(folder)

        def progress() -> int:
            arrived = _bytes_in(folder) - before
            if arrived > size + _BYTES_BESIDE:
                close_session()  # or the client would go on in its thread
                raise HubError(f"{path} of {repo} has more than the {size} bytes that were stated")
            return arrived

        def attempt() -> Path:
            def download() -> str:
                return self._api.hf_hub_download(
                    repo,
                    path,
                    revision=commit,
                    local_dir=folder,
                    cache_dir=folder / ".cache" / "empty",  # the user's own is unverified
                    etag_timeout=_TIMEOUT_SECONDS,
                )

            with self._said(repo, f"read {path} of"), _without_xet():
                return Path(_unless_silent(download, progress=progress))

        return _patiently(attempt)

    def create(self, repo: str) -> bool:
        """Make ``repo``, private. False if it is there already."""
        with self._said(repo, "create"):
            try:
                _unless_silent(lambda: self._api.create_repo(repo, private=True, exist_ok=False))
            except hub_errors.HfHubHTTPError as error:
                if _status(error) != 409:
                    raise
                return False
        return True

    def commit(
        self,
        repo: str,
        operations: Sequence[CommitOperationAdd | CommitOperationDelete],
        *,
        message: str,
        parent: str,
    ) -> None:
        """One commit on top of ``parent``.

        Raises:
            HubError: If the Hub refuses it, or another commit came between.
            HubUnreachableError: If no answer came; the commit may stand all the same.
        """
        size = sum(op.upload_info.size for op in operations if isinstance(op, CommitOperationAdd))
        with self._said(repo, "write to"):
            _unless_silent(
                lambda: self._api.create_commit(
                    repo, list(operations), commit_message=message, parent_commit=parent
                ),
                seconds=_SILENCE_SECONDS + size / _BYTES_PER_SECOND,
            )

    def open_to_public(self, repo: str) -> None:
        """Make a private repository public."""
        with self._said(repo, "open"):
            _unless_silent(lambda: self._api.update_repo_settings(repo, private=False))

    @contextmanager
    def _said(self, repo: str, doing: str) -> Iterator[None]:
        """Turn whatever the client raises into one of ours, without its text's secrets."""
        try:
            yield
        except PCDHubError:
            raise
        except Exception as error:  # four libraries' and the interpreter's own
            raise self._explained(error, repo, doing) from None

    def _explained(self, error: Exception, repo: str, doing: str) -> HubError:
        refused = _refusal(error, repo, self.endpoint, doing, known=self._token is not None)
        if refused:
            return refused
        if _is_offline(error):
            return HubUnreachableError(
                f"cannot {doing} {repo}: HF_HUB_OFFLINE is set; unset it, or fetch {repo} first"
            )
        *_, root = _chain(error)
        if isinstance(root, OSError) and root.errno in _OUR_DISK:
            return HubError(f"cannot {doing} {repo}: this machine says {_first_line(root)}")
        status = _status(root)
        reason = f"answers {status}" if status else "does not answer"
        return HubUnreachableError(
            f"cannot {doing} {repo}: {redacted(self.endpoint)} {reason} "
            f"({type(root).__name__}: {_first_line(root)}); try again later"
        )


def _size(sibling: RepoSibling) -> int:
    """Of a file; below 0 it would hide another from the bound on their sum."""
    size = int(sibling.size or 0)
    if size < 0:
        raise ValueError(f"{shown(sibling.rfilename)} of {size} bytes")
    return size


def check_total(total: int, repo: str) -> None:
    """Refuse what would fill the disk.

    Raises:
        HubError: If these are more bytes than any small backbone has.
    """
    if not 0 <= total <= _BYTES_AT_MOST:
        raise HubError(
            f"{repo} holds {total} bytes, more than the {_BYTES_AT_MOST} of any weight of ours"
        )


def _patiently(attempt: Callable[[], Value]) -> Value:
    """Up to three attempts, half a second and a second apart, if they fail fast.

    The client itself tries again after a silence; what it resets on is left to us.
    """
    start = time.monotonic()
    for count in range(1, _ATTEMPTS):
        try:
            return attempt()
        except HubUnreachableError as error:
            if is_offline() or time.monotonic() - start > _PATIENCE_SECONDS:
                raise
            log.info("attempt %d of %d: %s", count, _ATTEMPTS, error)
            time.sleep(count / 2)
    return attempt()


def _unless_silent(
    call: Callable[[], Value],
    *,
    progress: Callable[[], int] = lambda: 0,
    seconds: float | None = None,
) -> Value:
    """The call's result; TimeoutError once there is neither an end nor progress for so long.

    The client waits without a bound in some places and cannot be interrupted; its thread is left.
    """
    limit = _SILENCE_SECONDS if seconds is None else seconds
    outcome: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((call(), None))
        except Exception as error:  # raised below
            outcome.put((None, error))

    threading.Thread(target=work, name=CLIENT_THREAD, daemon=True).start()
    seen, since = progress(), time.monotonic()
    while True:
        try:
            value, error = outcome.get(timeout=min(limit, 1.0))
        except queue.Empty:
            if (now := progress()) != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since >= limit:
                raise TimeoutError(f"silent for {limit:.0f} s") from None
            continue
        if error is not None:
            raise error
        return value


def _bytes_in(folder: Path) -> int:
    """How much has arrived, also in the client's unfinished files."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


@contextmanager
def _without_xet() -> Iterator[None]:
    """Plain HTTP for downloads: over Xet an endpoint can name any folder here as its storage."""
    with _xet_lock:
        before = constants.HF_HUB_DISABLE_XET
        constants.HF_HUB_DISABLE_XET = True
        try:
            yield
        finally:
            constants.HF_HUB_DISABLE_XET = before


_xet_lock = threading.Lock()


def _refusal(
    error: Exception, repo: str, endpoint: str, doing: str, *, known: bool
) -> HubError | None:
    """What the Hub said no to; None if it is no answer of the Hub's."""
    causes = list(_chain(error))
    status = next(filter(None, map(_status, causes)), None)
    yours = "your token" if known else "nobody (no token is set)"
    if any("Invalid credentials" in str(cause) for cause in causes):
        return HubError(
            f"cannot {doing} {repo}: the Hub refuses the token; log in anew or unset HF_TOKEN"
        )
    said = {
        "gated": f"{repo} is gated: ask for access at {endpoint}/{repo}, then set HF_TOKEN",
        "revision": f"{repo} has no such revision; see {endpoint}/{repo}/commits/main",
        "file": f"cannot {doing} {repo}: the file is not there; is it a weight of pcd_hub?",
        404: f"{repo} does not exist on {endpoint}, or is private and closed to {yours}",
        403: f"cannot {doing} {repo}: {yours} may not; ask its owner, or use a token that writes",
        412: f"cannot {doing} {repo}: it was changed meanwhile; run the command again",
    }
    if kind := _kind(causes):
        return HubError(said[kind])
    if status is None or status >= 500 or status == 429:
        return None
    meant = {401: 404, 409: 412}.get(status, status)
    other = f"cannot {doing} {repo}: the Hub answers {status} ({_first_line(error)})"
    return (HubNotFoundError if meant == 404 else HubError)(said.get(meant, other))


def _kind(causes: Sequence[BaseException]) -> str | None:
    """What the client found out beside the status."""
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if "GatedRepoError" in names:
        return "gated"
    if "RevisionNotFoundError" in names:
        return "revision"
    if "EntryNotFoundError" in names and "LocalEntryNotFoundError" not in names:
        return "file"
    return None


def _is_offline(error: Exception) -> bool:
    return any(type(cause).__name__ == "OfflineModeIsEnabled" for cause in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, as far as it is the client's."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen and not isinstance(error, PCDHubError):
        seen.add(id(error))
        yield error
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: BaseException) -> str:
    lines = redacted(str(error)).strip().splitlines() or ["no message"]
    return printable(lines[0])[:200]
