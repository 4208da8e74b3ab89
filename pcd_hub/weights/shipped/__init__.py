"""Weights that are shipped in the package, each in a folder laid out as a Hub repository.

::

    pcd_hub/weights/shipped/resnet18.pcd/
        model.safetensors  config.json  README.md  *.png  pcd_manifest.json

They are read in place and verified like any other weight. ``scripts/ship.py`` writes these folders,
with the larger tensors in float16; the parameters of a loaded model are float32.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the shipped weights, complete or not; none of a folder it cannot read."""
    try:
        folders = [path.name for path in FOLDER.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(name for name in folders if name.partition(".")[2].startswith("pcd"))


def where(name: str) -> Path | None:
    """Return the folder of a shipped weight; None if there is none of that name."""
    return FOLDER / name if name in names() else None


def none_of(architecture: str) -> str:
    """Return the beginning of a message about an architecture without a shipped weight."""
    return f"pcd_hub ships no weight of {architecture}, only {', '.join(names())}"


def of_architecture(architecture: str) -> Path | None:
    """Return the folder of the shipped weight of an architecture; None if there is none."""
    return where(f"{architecture}.pcd")
