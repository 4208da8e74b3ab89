"""Load a weight from its folder; the parsed bytes are the same bytes that were verified."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pcd_hub.errors import WeightError
from pcd_hub.weights.layout import CONFIG_FILE, WEIGHTS_FILE
from pcd_hub.weights.manifest import check_listed, read_listed, read_manifest, record_sha256
from pcd_hub.weights.record import WeightRecord
from pcd_hub.weights.safety import check_config
from pcd_hub.weights.tensors import check_fit, check_size, load_tensors, needed_shapes


class ReadWeight(NamedTuple):
    """The verified content of a weight's folder."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    """The content of config.json."""
    record: WeightRecord
    weights_sha256: str
    """Hash of model.safetensors."""


def read_weight(
    folder: Path, *, what: str | None = None, manifest_sha256: str | None = None
) -> ReadWeight:
    """Verify all files in the manifest and parse the weights, reading each file once.

    Args:
        folder: A folder in the layout of a Hub repository.
        what: Name of the weight in error messages; default: the folder.
        manifest_sha256: Expected sha256 of the manifest, if known.

    Raises:
        WeightError: If a file is missing, damaged or invalid, does not fit timm's architecture,
            contains NaN or infinity, or refers to a different record.
    """
    label = what or str(folder)
    manifest = read_manifest(folder, pinned=manifest_sha256)
    record = WeightRecord.from_dict(manifest["record"])
    listed = {entry["path"]: entry for entry in manifest["files"]}
    config_entry, weights_entry = listed.pop(CONFIG_FILE), listed.pop(WEIGHTS_FILE)
    config = check_config(read_listed(folder, config_entry), what=f"{label}: {CONFIG_FILE}")
    if config["pcd"].get("record_sha256", digest := record_sha256(manifest["record"])) != digest:
        raise WeightError(
            f"{label}: {CONFIG_FILE} refers to another record than the manifest's; export it again"
        )
    needed = needed_shapes(config["architecture"], config.get("model_args", {}), what=label)
    check_size(weights_entry["size"], needed, what=f"{label}: {WEIGHTS_FILE}")
    tensors = load_tensors(read_listed(folder, weights_entry), what=f"{label}: {WEIGHTS_FILE}")
    check_fit({name: tuple(t.shape) for name, t in tensors.items()}, needed, what=label)
    for entry in listed.values():
        check_listed(folder, entry)
    return ReadWeight(tensors, config, record, weights_entry["sha256"])
