"""Turn exceptions of huggingface_hub and its HTTP libraries into one-line errors."""

import errno
from collections.abc import Iterator, Sequence

from pcd_hub.errors import HubError, HubNotFoundError, HubUnreachableError, PCDHubError
from pcd_hub.files.strict_json import printable
from pcd_hub.weights.hub.address import redacted

_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE}


def explain(error: Exception, repo: str, endpoint: str, doing: str, *, known: bool) -> HubError:
    """Return a HubError, without secrets, for an exception raised by huggingface_hub.

    Args:
        error: The exception.
        repo: The repository.
        endpoint: The Hub's address.
        doing: The action that failed: the words between "cannot" and ``repo`` in the message.
        known: True if a token was sent.
    """
    if refused := _refusal(error, repo, endpoint, doing, known=known):
        return refused
    if any(type(cause).__name__ == "OfflineModeIsEnabled" for cause in _chain(error)):
        return HubUnreachableError(
            f"cannot {doing} {repo}: HF_HUB_OFFLINE is set; unset it, or fetch {repo} first"
        )
    *_, root = _chain(error)
    if isinstance(root, OSError) and root.errno in _LOCAL:
        return HubError(f"cannot {doing} {repo}: error on this machine: {brief(root)}")
    status = status_of(root)
    reason = f"answered {status}" if status else "does not answer"
    no_xet = "/xet-" in str(root)
    remedy = "if it has no Xet storage, set HF_HUB_DISABLE_XET=1" if no_xet else "try again later"
    return HubUnreachableError(
        f"cannot {doing} {repo}: {redacted(endpoint)} {reason} "
        f"({type(root).__name__}: {brief(root)}); {remedy}"
    )


def _refusal(
    error: Exception, repo: str, endpoint: str, doing: str, *, known: bool
) -> HubError | None:
    """Return the error for a response in which the Hub refuses a request; None otherwise."""
    causes = list(_chain(error))
    status = next(filter(None, map(status_of, causes)), None)
    user = "your token" if known else "anonymous users (no token is set)"
    if any("Invalid credentials" in str(cause) for cause in causes):
        return HubError(
            f"cannot {doing} {repo}: the Hub rejects the token; run `hf auth login` or unset "
            "HF_TOKEN"
        )
    reasons = {
        "gated": f"{repo} is gated: request access at {endpoint}/{repo}, then set HF_TOKEN",
        "revision": f"{repo} has no such revision; see {endpoint}/{repo}/commits/main",
        "file": f"cannot {doing} {repo}: the file does not exist; is it a weight of pcd_hub?",
        404: f"{repo} does not exist on {endpoint}, or is private and not visible to {user}",
        403: f"cannot {doing} {repo}: {user} may not; ask its owner, or use a token with write "
        "permission",
        412: f"cannot {doing} {repo}: it changed in the meantime; run the command again",
    }
    if kind := _kind(causes):
        return HubError(reasons[kind])
    if status is None or status >= 500 or status == 429:
        return None
    meant = {401: 404, 409: 412}.get(status, status)
    other = f"cannot {doing} {repo}: the Hub answered {status} ({brief(error)})"
    return (HubNotFoundError if meant == 404 else HubError)(reasons.get(meant, other))


def _kind(causes: Sequence[BaseException]) -> str | None:
    """Return the kind of refusal that huggingface_hub recognised, if any."""
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if "GatedRepoError" in names:
        return "gated"
    if "RevisionNotFoundError" in names:
        return "revision"
    if "EntryNotFoundError" in names and "LocalEntryNotFoundError" not in names:
        return "file"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, up to the first PCDHubError."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen and not isinstance(error, PCDHubError):
        seen.add(id(error))
        yield error
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an exception's response, if it has one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def brief(error: BaseException) -> str:
    """Return the first line of an exception's message: printable, short, without secrets."""
    lines = redacted(str(error)).strip().splitlines() or ["no message"]
    return printable(lines[0])[:200]
