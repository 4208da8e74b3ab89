"""File names of a weight: the same in an export, the local store and a Hub repository."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
MANIFEST_FILE = "pcd_manifest.json"
MANIFEST_SCHEMA = 1

IMPORTED = "imported"
"""Start of the tag of a weight that another library trained."""
TAG = rf"(?:pcd|{IMPORTED})(?:_[a-z0-9_]{{1,60}})?"
"""Regular expression of a weight's tag, the part of its name after ``ARCH.``."""
