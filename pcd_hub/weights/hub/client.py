"""Client for the Hugging Face Hub: read a repository's state, download files, make commits.

All requests go through huggingface_hub, with additional limits on the size of a download, the time
without progress, and the number of retries. Its exceptions become a one-line ``HubError``.
"""

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
    HfApi,
    ModelInfo,
    constants,
    get_token,
)
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import close_session

from pcd_hub.errors import HubError, HubUnreachableError, PCDHubError
from pcd_hub.files.strict_json import shown
from pcd_hub.weights.hub.address import check_endpoint, check_token, is_commit, is_offline
from pcd_hub.weights.hub.explain import brief, explain, status_of

log = logging.getLogger("pcd_hub")

CLIENT_THREAD = "pcd-hub client"
"""Name of the threads in which huggingface_hub runs."""
_TIMEOUT_SECONDS = 10.0
_SILENCE_SECONDS = 25.0
_BYTES_PER_SECOND = 50_000  # slowest upload that is allowed
_ATTEMPTS = 3
_PATIENCE_SECONDS = 5.0
_BYTES_AT_MOST = 4 * 1024**3
_MAX_METADATA_BYTES = 1024**2  # written by huggingface_hub next to each file

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file in the Hub's listing of a repository."""

    size: int
    blob: str
    """Git blob SHA-1 of the content, or of the pointer for an LFS file."""
    sha256: str | None
    """SHA-256 of the content of an LFS file; None for other files."""


@dataclass(frozen=True, kw_only=True)
class RepoState:
    """A repository at one commit."""

    commit: str
    private: bool
    files: dict[str, RemoteFile]


class Hub:
    """Client for the Hub at ``HF_ENDPOINT``, with the user's token if there is one."""

    def __init__(self) -> None:
        """Check endpoint and token, without a network request.

        Raises:
            HubError: If the endpoint or the token is malformed.
        """
        from pcd_hub import __version__  # noqa: PLC0415 - circular import

        self.endpoint = check_endpoint(constants.ENDPOINT)
        self._token = check_token(get_token())
        self._api = HfApi(
            endpoint=self.endpoint,
            token=self._token or False,
            library_name="pcd_hub",
            library_version=__version__,
        )

    def state(self, repo: str, revision: str | None = None) -> RepoState:
        """Return the state of ``repo`` at ``revision`` (default: the default branch).

        Raises:
            HubError: If access is denied, or the response is malformed.
            HubUnreachableError: If there is no response, or HF_HUB_OFFLINE is set.
        """

        def attempt() -> ModelInfo:
            with self._translated(repo, "read"):
                return self._api.model_info(
                    repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
                )

        info = _patiently(attempt)
        commit = str(info.sha)
        if not is_commit(commit) or (is_commit(revision) and commit != revision):
            raise HubError(
                f"{repo}: {self.endpoint} answered commit {commit[:60]!r}, "
                f"expected {revision or '40 lower-case hex digits'}"
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
                f"{repo}: {self.endpoint} answered an invalid list of files "
                f"({brief(error)}); is it a Hub?"
            ) from None
        return RepoState(commit=commit, private=bool(info.private), files=files)

    def download(self, repo: str, commit: str, path: str, folder: Path, *, size: int) -> Path:
        """Download one file into ``folder``, which must be private to the caller.

        Raises:
            HubError: If access is denied, or the file is longer than ``size`` bytes.
            HubUnreachableError: If the Hub cannot be reached after up to three attempts.
        """
        before = _bytes_in(folder)

        def progress() -> int:
            arrived = _bytes_in(folder) - before
            if arrived > size + _MAX_METADATA_BYTES:
                close_session()  # stops the download thread
                raise HubError(f"{path} of {repo} is longer than the expected {size} bytes")
            return arrived

        def attempt() -> Path:
            def download() -> str:
                with _without_xet():
                    return self._api.hf_hub_download(
                        repo,
                        path,
                        revision=commit,
                        local_dir=folder,
                        cache_dir=folder / ".cache" / "empty",  # the user's cache is not verified
                        etag_timeout=_TIMEOUT_SECONDS,
                    )

            with self._translated(repo, f"read {path} of"):
                return Path(_unless_silent(download, progress=progress))

        return _patiently(attempt)

    def create(self, repo: str) -> bool:
        """Create ``repo`` as a private repository; return False if it exists already."""
        with self._translated(repo, "create"):
            try:
                _unless_silent(lambda: self._api.create_repo(repo, private=True, exist_ok=False))
            except hub_errors.HfHubHTTPError as error:
                if status_of(error) != 409:
                    raise
                return False
        return True

    def commit(
        self,
        repo: str,
        operations: Sequence[CommitOperationAdd],
        *,
        message: str,
        parent: str,
    ) -> None:
        """Make one commit on top of ``parent``.

        Raises:
            HubError: If the Hub refuses it, or ``parent`` is no longer the latest commit.
            HubUnreachableError: If there is no response; the commit may still have been made.
        """
        size = sum(operation.upload_info.size for operation in operations)
        with self._translated(repo, "write to"):
            _unless_silent(
                lambda: self._api.create_commit(
                    repo, list(operations), commit_message=message, parent_commit=parent
                ),
                seconds=_SILENCE_SECONDS + size / _BYTES_PER_SECOND,
            )

    def open_to_public(self, repo: str) -> None:
        """Make a private repository public."""
        with self._translated(repo, "open"):
            _unless_silent(lambda: self._api.update_repo_settings(repo, private=False))

    @contextmanager
    def _translated(self, repo: str, doing: str) -> Iterator[None]:
        """Turn any exception raised by huggingface_hub into a HubError without secrets."""
        try:
            yield
        except PCDHubError:
            raise
        except Exception as error:  # huggingface_hub lets those of its dependencies through
            known = self._token is not None
            raise explain(error, repo, self.endpoint, doing, known=known) from None


def _size(sibling: RepoSibling) -> int:
    size = int(sibling.size or 0)
    if size < 0:  # would offset another file in the check of the total
        raise ValueError(f"{shown(sibling.rfilename)} of {size} bytes")
    return size


def check_total(total: int, repo: str) -> None:
    """Check the total size of a download in bytes.

    Raises:
        HubError: If it is over the limit of 4 GiB.
    """
    if total > _BYTES_AT_MOST:
        raise HubError(f"{repo} holds {total} bytes, expected at most {_BYTES_AT_MOST}")


def _patiently(attempt: Callable[[], Value]) -> Value:
    """Make up to three attempts, as long as they fail quickly.

    huggingface_hub retries after a timeout, but not after a connection reset.
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
    """Return the call's result; raise TimeoutError after ``seconds`` without progress.

    huggingface_hub may block indefinitely and cannot be interrupted, so its thread is abandoned.
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
                raise TimeoutError(f"no progress for {limit:.0f} s") from None
            continue
        if error is not None:
            raise error
        return value


def _bytes_in(folder: Path) -> int:
    """Return the size of all files in ``folder``, including incomplete ones."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


_xet_lock = threading.Lock()
_xet_before: list[bool] = []


@contextmanager
def _without_xet() -> Iterator[None]:
    """Disable Xet inside the block: a malicious endpoint can direct it to any local folder.

    huggingface_hub has only a global switch, which is set while any download of pcd_hub runs.
    """
    with _xet_lock:
        _xet_before.append(constants.HF_HUB_DISABLE_XET)
        constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        with _xet_lock:
            before = _xet_before.pop()
            constants.HF_HUB_DISABLE_XET = bool(_xet_before) or before
