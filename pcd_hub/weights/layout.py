"""File names of a weight: the same in an export, the local store and a Hub repository."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
MANIFEST_FILE = "pcd_manifest.json"
MANIFEST_SCHEMA = 1
