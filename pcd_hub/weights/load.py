"""A weight's folder as tensors: hashed, checked and parsed from the very same bytes."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pcd_hub.errors import WeightError
from pcd_hub.weights.layout import CONFIG_FILE, WEIGHTS_FILE
from pcd_hub.weights.manifest import check_listed, read_listed, read_manifest
from pcd_hub.weights.record import WeightRecord
from pcd_hub.weights.safety import check_config
from pcd_hub.weights.tensors import check_fit, check_size, load_tensors, needed_shapes


class ReadWeight(NamedTuple):
    """What a verified folder holds."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    """timm's config.json."""
    record: WeightRecord


def read_weight(
    folder: Path, *, what: str | None = None, manifest_sha256: str | None = None
) -> ReadWeight:
    """Verify the whole folder and parse its weights, each file read once.

    Args:
        folder: In the layout of a Hub repository, with its manifest.
        what: How errors name it; the folder if not given.
        manifest_sha256: What the manifest must hash to, if that is known.

    Raises:
        WeightError: If a file is missing, damaged, not of the allowed kinds, or does not fit timm's
            architecture, if a value is not finite, or if config and manifest tell another record.
    """
    label = what or str(folder)
    manifest = read_manifest(folder, pinned=manifest_sha256)
    record = WeightRecord.from_dict(manifest["record"])
    listed = {entry["path"]: entry for entry in manifest["files"]}
    config_entry, weights_entry = listed.pop(CONFIG_FILE), listed.pop(WEIGHTS_FILE)
    config = check_config(read_listed(folder, config_entry), what=f"{label}: {CONFIG_FILE}")
    if config.get("pcd", manifest["record"]) != manifest["record"]:
        raise WeightError(
            f"{label}: the record in {CONFIG_FILE} is not the one in its manifest; export it again"
        )
    needed = needed_shapes(config["architecture"], config.get("model_args", {}), what=label)
    check_size(weights_entry["size"], needed, what=f"{label}: {WEIGHTS_FILE}")
    tensors = load_tensors(read_listed(folder, weights_entry), what=f"{label}: {WEIGHTS_FILE}")
    check_fit({name: tuple(t.shape) for name, t in tensors.items()}, needed, what=label)
    for entry in listed.values():
        check_listed(folder, entry)
    return ReadWeight(tensors, config, record)
