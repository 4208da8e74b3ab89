"""The README.md beside an exported weight."""

from typing import NamedTuple

from pcd_hub.files.markdown import escaped
from pcd_hub.weights.load import ReadWeight
from pcd_hub.weights.record import NOT_STATED


class Usage(NamedTuple):
    """How the framework uses the exported weight."""

    file: str
    code: str
    """At most five lines that use it."""
    language: str = "python"
    value_range: int = 1
    """Largest value of a pixel before mean and std are applied: 1 or 255."""
    normalised_inside: bool = False
    """Whether the file's tensors apply mean and std themselves."""
    notes: tuple[str, ...] = ()
    precision: str = ""
    """Types of weights, input and output; empty where the framework decides."""
    difference: str = ""
    """How far the features are from timm's, as measured by the export."""


def normalisation(weight: ReadWeight, value_range: int) -> tuple[list[float], list[float]]:
    """Return mean and std of the images, for values from 0 to ``value_range``."""
    cfg = weight.config["pretrained_cfg"]
    mean, std = ([round(value * value_range, 6) for value in cfg[key]] for key in ("mean", "std"))
    return mean, std


def render_readme(weight: ReadWeight, usage: Usage, *, to: str) -> str:
    """Render the README.md of an exported weight."""
    record = weight.record
    mean, std = normalisation(weight, usage.value_range)
    inside = " (in the file's tensors)" if usage.normalised_inside else ""
    bands = record.data.get("bands")
    order = ", ".join(map(str, bands)) if isinstance(bands, list) and bands else "RGB"
    notes = "".join(f"\n{note}\n" for note in usage.notes)
    rows = {"precision": usage.precision, "measured difference": usage.difference}
    measured = "".join(f"| {what} | {escaped(fact)} |\n" for what, fact in rows.items() if fact)
    return f"""# {escaped(record.name)} for {to}

```{usage.language}
{usage.code}
```
{notes}
| | |
|---|---|
| file | {escaped(usage.file)} |
| architecture | {escaped(record.architecture)} |
| channel order | {escaped(order)} |
| value range before mean and std | 0 to {usage.value_range} |
| mean | {mean}{inside} |
| std | {std}{inside} |
{measured}| licence of the weights | {escaped(record.licenses.get("weights", NOT_STATED))} |
| licence of the teacher | {escaped(record.licenses.get("teacher", NOT_STATED))} |
| source | {escaped(record.name)}, model.safetensors |
| sha256 of the source | `{weight.weights_sha256}` |
"""
