"""The package's list of published weights, with the repository and commit of each."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pcd_hub.errors import WeightError
from pcd_hub.files.read import read_bounded
from pcd_hub.files.strict_json import (
    COUNT,
    FINITE,
    SHA256,
    TEXT,
    check_fields,
    matching,
    parse_json,
    several,
)
from pcd_hub.weights.hub.address import split_reference
from pcd_hub.weights.store import check_name

_LIST = Path(__file__).with_name("published.json")
_MAX_BYTES = 10_000_000
_ENTRY = {
    **dict.fromkeys(("name", "repo", "license"), TEXT),
    "commit": matching(r"[0-9a-f]{40}", "40 lower-case hex digits"),
    "manifest_sha256": SHA256,
    "weights_sha256": SHA256,
    "parameters": COUNT,
    "features": several(FINITE, 1, 64),
}


@dataclass(frozen=True, kw_only=True)
class PublishedWeight:
    """An entry in the list; ``pcd-hub publish`` prints it."""

    name: str
    repo: str
    commit: str
    manifest_sha256: str
    weights_sha256: str
    license: str
    parameters: int
    features: tuple[float, ...]
    """First pooled features of a fixed image; checked before each release."""

    @property
    def reference(self) -> str:
        """``ORG/NAME@COMMIT``."""
        return f"{self.repo}@{self.commit}"


@cache
def published_weights() -> dict[str, PublishedWeight]:
    """Return the package's published weights by name."""
    return read_list(_LIST)


def read_list(path: Path) -> dict[str, PublishedWeight]:
    """Read a list file; return its entries by name.

    Raises:
        WeightError: If the file is not a valid list.
    """
    try:
        found = parse_json(read_bounded(path, _MAX_BYTES), what="it", max_bytes=_MAX_BYTES)
        for entry in found if isinstance(found, list) else [found]:
            check_fields(entry, _ENTRY, what="an entry")
        records = [PublishedWeight(**{**raw, "features": tuple(raw["features"])}) for raw in found]
    except (OSError, ValueError, TypeError) as error:
        raise WeightError(f"{path} is not a list of published weights: {error}") from error
    return {record.name: record for record in records}


def reference_of(name: str) -> tuple[str, str | None] | None:
    """Return a weight's Hub reference and the sha256 of its manifest, or None if it is not listed.

    The sha256 is None if it is not known. ``PCD_HUB_ORG``, if set, takes precedence over the
    package's list.

    Args:
        name: ``resnet18.pcd[@REVISION]``, or ``ORG/NAME[@REVISION]``, which is returned unchanged
            but for timm's prefix ``hf-hub:``.

    Raises:
        WeightError: If ``name`` or ``PCD_HUB_ORG`` is malformed.
    """
    if "/" in name:
        return name.removeprefix("hf-hub:"), None
    plain, at, revision = name.partition("@")
    check_name(plain)
    record = published_weights().get(plain)
    if org := os.environ.get("PCD_HUB_ORG"):
        repo, _ = split_reference(f"{org}/{plain}")
    elif record is None:
        return None
    elif not at:
        return record.reference, record.manifest_sha256
    else:
        repo = record.repo
    return f"{repo}{at}{revision}", None
