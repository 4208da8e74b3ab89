"""What the card of an imported weight says instead of a method."""

from pcd_hub.files.markdown import escaped
from pcd_hub.weights.layout import MANIFEST_FILE
from pcd_hub.weights.manifest import record_sha256
from pcd_hub.weights.record import WeightRecord

SENTENCE = (
    "It was **imported** from a checkpoint of another library: pcd_hub did not train it, and does "
    "not know how, by whom or on which images it was trained."
)
LIMIT = "- How and on what it was trained is unknown to pcd_hub; its biases and limits are, too."

_FACTS = {
    "file": "File",
    "sha256": "sha256 of the file",
    "bytes": "Bytes",
    "layout": "Names of the tensors",
    "prefix": "Place in the file",
    "unused": "Not used",
    "channels": "Channels",
    "normalisation": "Mean and std of the images",
}
"""Fields of ``WeightRecord.imported``, as the card calls them."""


def origin(record: WeightRecord) -> str:
    """Render the section about the imported file."""
    found = {what: record.imported.get(key) for key, what in _FACTS.items()}
    lines = [f"- {what}: {escaped(value)}" for what, value in found.items() if value]
    return "\n".join(["## Origin", "", SENTENCE, "", *lines])


def provenance(record: WeightRecord) -> str:
    """Render the section about the import."""
    version = escaped(str(record.code.get("pcd_hub", "")))
    return f"""## Provenance

- Imported: {escaped(record.created)}, by {escaped(record.recipe)} of pcd_hub {version}
- All facts: `{MANIFEST_FILE}` (record sha256 `{record_sha256(record.to_dict())}`)"""
