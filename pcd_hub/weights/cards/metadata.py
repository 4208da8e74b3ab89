"""Metadata of a model card: the YAML that the Hub reads."""

import re
from typing import Any

import yaml
from timm.models import model_entrypoint

from pcd_hub.weights.record import HUB_LICENSES, NOT_STATED, Measurement, WeightRecord

_TAGS = ("pcd", "distillation", "dense-prediction")
CITATION = """@inproceedings{huang2023pixel,
  title     = {Pixel-Wise Contrastive Distillation},
  author    = {Huang, Junqiang and Guo, Zichao},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2023}
}"""


def needs_import(architecture: str) -> bool:
    """Return whether ``architecture`` is defined in pcd_hub and not in timm."""
    return model_entrypoint(architecture).__module__.startswith("pcd_hub")


def front_matter(
    record: WeightRecord, measured: dict[str, Measurement], *, license_link: str | None
) -> str:
    """Render the metadata of a weight.

    Args:
        record: The weight's record.
        measured: Its measurements.
        license_link: URL of the licence's text, if the Hub has no identifier for it.
    """
    license_id = record.licenses["weights"]
    known = license_id in HUB_LICENSES
    library = "pcd_hub" if needs_import(record.architecture) else "timm"
    matter: dict[str, Any] = {"license": license_id if known else "other"}
    if not known:
        matter |= {"license_name": license_id, "license_link": license_link or NOT_STATED}
    matter |= {
        # The Hub shows a loading snippet for this library.
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "tags": [library, *(["imported"] if record.imported else _TAGS)],
    }
    if repo := hub_repository(record.start):
        matter |= {"base_model": repo, "base_model_relation": "finetune"}
    if record.hub_datasets:
        matter["datasets"] = record.hub_datasets
    if measured:
        matter["model-index"] = [
            {
                "name": record.name,
                "results": [_indexed(name, table) for name, table in measured.items()],
            }
        ]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---"


def hub_repository(start: dict[str, Any]) -> str:
    """Return the Hub repository of the weights that a training started from, or an empty string."""
    repo = str(start.get("hub_id", ""))
    return repo if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) else ""


def _indexed(name: str, table: Measurement) -> dict[str, Any]:
    """Format one result; the Hub merges results with the same data set and ``config``."""
    return {
        "task": {"type": "image-feature-extraction", "name": table.task},
        "dataset": {
            "type": re.sub(r"[^a-z0-9]+", "-", table.dataset.lower()).strip("-"),
            "name": table.dataset,
            "config": name,
        },
        "metrics": [
            {
                "type": re.sub(r"[^a-z0-9]+", "_", table.metric.lower()).strip("_"),
                "name": f"{table.metric} ({table.task})",
                "value": float(table.means[table.subject]),
            }
        ],
    }
