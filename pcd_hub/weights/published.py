"""The package's own list of published weights: which commit of which repository a name means."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pcd_hub.errors import WeightError
from pcd_hub.weights.address import split_reference

_LIST = Path(__file__).with_name("published.json")


@dataclass(frozen=True, kw_only=True)
class PublishedWeight:
    """One entry of the list, as ``pcd-hub publish`` prints it."""

    name: str
    repo: str
    commit: str
    manifest_sha256: str
    weights_sha256: str
    license: str
    parameters: int
    features: tuple[float, ...]
    """The first pooled features of a fixed image, to be measured again at a release."""

    @property
    def reference(self) -> str:
        """``ORG/NAME@COMMIT``."""
        return f"{self.repo}@{self.commit}"


@cache
def published_weights() -> dict[str, PublishedWeight]:
    """The list, by name."""
    return read_list(_LIST)


def read_list(path: Path) -> dict[str, PublishedWeight]:
    """The records of a list file, by name.

    Raises:
        WeightError: If the file is not such a list.
    """
    try:
        records = [
            PublishedWeight(**{**raw, "features": tuple(raw["features"])})
            for raw in json.loads(path.read_text())
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightError(f"{path} is no list of published weights: {error!r}") from error
    return {record.name: record for record in records}


def reference_of(name: str) -> tuple[str, str | None] | None:
    """Where ``resnet18.pcd`` is published: reference and its manifest's sha256, as far as known.

    ``PCD_HUB_ORG``, if set, goes before the package's list, and says nothing of the manifest.

    Raises:
        WeightError: If ``PCD_HUB_ORG`` is no namespace.
    """
    if org := os.environ.get("PCD_HUB_ORG"):
        repo, _ = split_reference(f"{org}/{name}")
        return repo, None
    record = published_weights().get(name)
    return (record.reference, record.manifest_sha256) if record else None
