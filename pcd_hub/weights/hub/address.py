"""Check Hub references, the Hub's address and the token; redact secrets."""

import re
from urllib.parse import urlsplit

from huggingface_hub import constants

from pcd_hub.errors import HubError, WeightError

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,79}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_CHARACTERS = 10_000  # the regular expressions take quadratic time
_SECRETS = (
    (re.compile(r"hf_\w+"), "hf_***"),
    (re.compile(r"(?i)bearer\s+\S+"), "Bearer ***"),
    (re.compile(r"(\b\w{1,20}://)[^/@\s]+@"), r"\1***@"),
    (re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+"), r"\1?***"),
)


def split_reference(reference: str) -> tuple[str, str | None]:
    """Split ``ORG/NAME[@REVISION]`` into repository and revision.

    Raises:
        WeightError: If it is not of that form.
    """
    repo, at, revision = reference.partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise WeightError(
            f"{reference[:200]!r} is not a Hub repository; expected ORG/NAME or ORG/NAME@REVISION"
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise WeightError(
            f"{revision[:200]!r} is not a revision; expected a commit (40 hex digits), a branch or "
            "a tag"
        )
    return repo, revision if at else None


def is_commit(revision: str | None) -> bool:
    """Return whether ``revision`` is a full commit hash."""
    return bool(revision and _COMMIT.fullmatch(revision))


def is_offline() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` is set."""
    return bool(constants.HF_HUB_OFFLINE)


def check_endpoint(endpoint: str) -> str:
    """Return the Hub's address without a trailing slash, if it is safe to send a token there.

    ``https`` is allowed for any host; plain ``http`` only for this machine (``localhost``,
    ``127.0.0.1``, ``::1``), for example for a local proxy.

    Raises:
        HubError: If the address is not allowed, or contains a user name or password.
    """
    try:
        parts = urlsplit(endpoint)
    except ValueError as error:
        raise HubError(f"HF_ENDPOINT={redacted(endpoint)[:200]} is not a URL: {error}") from None
    if parts.username or parts.password:
        raise HubError(
            "HF_ENDPOINT carries a user name or password, which errors and logs would show; "
            "use HF_TOKEN"
        )
    loopback = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if parts.query or not parts.hostname:
        raise HubError(
            f"HF_ENDPOINT={redacted(endpoint)[:200]} is not a valid address; expected https://HOST"
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise HubError(
            f"HF_ENDPOINT={redacted(endpoint)[:200]} is not https; "
            "weights and tokens would be sent unencrypted"
        )
    return endpoint.rstrip("/")


def check_token(token: str | None) -> str | None:
    """Return the token without surrounding white space; None if there is none.

    Raises:
        HubError: If it contains anything but printable ASCII characters. The message does not
            include the token.
    """
    token = (token or "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise HubError(
            f"the Hub token ({len(token)} characters) holds a space or a control character; "
            "set HF_TOKEN again, or run `hf auth login`"
        )
    return token or None


def redacted(text: str) -> str:
    """Shorten ``text`` and redact tokens, passwords and query strings of URLs."""
    text = text[:_MAX_CHARACTERS]
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
