"""The README.md beside an exported weight."""

from typing import NamedTuple

from pcd_hub.data.multiband.names import RGB
from pcd_hub.files.markdown import escaped
from pcd_hub.weights.input_bands import recorded_bands
from pcd_hub.weights.load import ReadWeight
from pcd_hub.weights.record import NOT_STATED


class Usage(NamedTuple):
    """How the framework uses the exported weight."""

    file: str
    code: str
    """At most five lines that use it."""
    language: str = "python"
    value_range: int = 1
    """Largest value of a pixel before mean and std are applied: 1, or 255 for RGB images."""
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


def in_chans(weight: ReadWeight) -> int:
    """Return the number of bands of the images."""
    return weight.config.get("model_args", {}).get("in_chans", len(RGB))


def band_names(weight: ReadWeight) -> tuple[str, ...]:
    """Return the names of the bands in their order; empty for red, green and blue."""
    names, count = recorded_bands(weight.record), in_chans(weight)
    if len(names) != count:
        names = tuple(f"band {number + 1}" for number in range(count))
    return () if names == RGB else names


def note_of_bands(weight: ReadWeight, reader: str) -> str:
    """Return the sentence for a framework whose reader gives RGB images alone."""
    return (
        f"{reader} reads images of three channels and 8 bits; read these images with code of your "
        f"own: the bands {', '.join(band_names(weight))} in this order, {_values(weight)}, then "
        "the mean and std below."
    )


def _values(weight: ReadWeight) -> str:
    """Return how the values of bands are scaled."""
    limits = weight.record.data.get("band_range")
    if isinstance(limits, list) and len(limits) == 2:
        return f"their values {limits[0]} to {limits[1]} scaled to 0 to 1"
    return "the range of their type (255 or 65535) scaled to 0 to 1"


def render_readme(weight: ReadWeight, usage: Usage, *, to: str) -> str:
    """Render the README.md of an exported weight."""
    record = weight.record
    mean, std = normalisation(weight, usage.value_range)
    inside = " (in the file's tensors)" if usage.normalised_inside else ""
    bands = band_names(weight)
    order = ", ".join(bands) or "RGB"
    values = f"; {_values(weight)}" if bands else ""
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
| value range before mean and std | 0 to {usage.value_range}{escaped(values)} |
| mean | {mean}{inside} |
| std | {std}{inside} |
{measured}| licence of the weights | {escaped(record.licenses.get("weights", NOT_STATED))} |
| licence of the teacher | {escaped(record.licenses.get("teacher", NOT_STATED))} |
| source | {escaped(record.name)}, model.safetensors |
| sha256 of the source | `{weight.weights_sha256}` |
"""
