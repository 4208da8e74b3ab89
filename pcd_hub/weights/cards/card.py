"""Render the model card of a weight; unknown values are shown as "not measured"."""

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from timm.models import get_pretrained_cfg

from pcd_hub.errors import WeightError
from pcd_hub.files.markdown import escaped as _text
from pcd_hub.image_size import format_size
from pcd_hub.weights.cards.metadata import CITATION, front_matter, hub_repository, needs_import
from pcd_hub.weights.cards.results import NOT_MEASURED, results
from pcd_hub.weights.imported import card as imported
from pcd_hub.weights.layout import MANIFEST_FILE, WEIGHTS_FILE
from pcd_hub.weights.manifest import record_sha256
from pcd_hub.weights.record import NOT_STATED, WeightRecord, licensed_parts
from pcd_hub.weights.safety import check_buildable

_PICTURES = {
    "pca.png": "First three principal components of the feature maps as colours: images, "
    "teacher, this weight",
    "training.png": "Loss and learning rate over the training steps",
    "probe.png": "Segmentation by the linear probe: images, truth, then the models of the table",
}


def render_card(
    record: WeightRecord,
    *,
    files: Iterable[dict[str, Any]],
    repo: str | None = None,
    license_link: str | None = None,
    is_shipped: bool = False,
) -> str:
    """Render the README.md of a weight.

    Args:
        record: The weight's record.
        files: Path, size and sha256 of every other file in the folder.
        repo: The Hub repository; if None, the card describes a local folder.
        license_link: URL of the licence's text, if the Hub has no identifier for it.
        is_shipped: The weight is part of the package, where its name loads it.

    Raises:
        WeightError: If the record lacks a required field.
    """
    files = list(files)
    check_buildable(record.architecture, {}, what=record.name)
    measured = record.measurements()
    if missing := [what for what in licensed_parts(record) if what not in record.licenses]:
        raise WeightError(
            f"{record.name}: the record has no licence of the {missing[0]}; a card needs those of "
            f"{', '.join(licensed_parts(record))}"
        )
    sections = [
        front_matter(record, measured, license_link=license_link),
        f"# {_text(repo or record.name)}\n\n{_summary(record, files)}",
        results(measured),
        _usage(record, repo, is_shipped=is_shipped),
        _pictures(record, files),
        _method(record),
        _limits(record),
        _licenses(record, license_link),
        _provenance(record),
        _files(files),
        "" if record.imported else f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(record: WeightRecord, files: list[dict[str, Any]]) -> str:
    facts = record.model
    size = next(f["size"] for f in files if f["path"] == WEIGHTS_FILE)
    parts = [
        f"{_text(record.architecture)}, "
        + ("imported" if record.imported else "distilled without labels for dense prediction"),
        f"{_number(facts, 'parameters', 1e6)} M parameters",
        f"{size / 1e6:.1f} MB{_storage(facts)}",
        f"{_number(facts, 'macs', 1e9)} GMACs at {_fact(facts, 'image_size')} px",
        f"{_fact(facts, 'channels')} channels out; licence {_text(record.licenses['weights'])}",
    ]
    made = "[Pixel-Wise Contrastive Distillation](https://arxiv.org/abs/2211.00218) by pcd_hub"
    made = imported.SENTENCE if record.imported else f"Made with {made}."
    return f"A timm backbone: {'; '.join(parts)}. {made}"


def _storage(facts: dict[str, Any]) -> str:
    stored = facts.get("stored_as")
    return f" (stored as {_text(stored)}, loaded as float32)" if isinstance(stored, str) else ""


def _usage(record: WeightRecord, repo: str | None, *, is_shipped: bool) -> str:
    where = f"hf-hub:{repo}" if repo else f"local-dir:<store>/{record.name}"
    ours = repo or record.name
    first = "import timm"
    if is_shipped:
        where, first = record.name, "import pcd_hub, timm  # pcd_hub brings the weight"
    if needs_import(record.architecture):
        first = "import pcd_hub, timm  # pcd_hub brings the architecture"
    of, pinned = "one commit", f'  # pinned: "{ours}@COMMIT"'
    more = "`pcd-hub fetch` prints the commit and the manifest's sha256, to pin them."
    if is_shipped:
        of, pinned, more = "the package", "", "It is part of the package and needs no network."
    bands = _listed(record.data, "bands")
    size = f", of images `(B, {len(bands)}, H, W)`" if bands else ""
    transform = (
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    )
    if bands:  # timm's transforms take RGB images
        transform = (
            'mean, std = (model.pretrained_cfg[key] for key in ("mean", "std"))  # of values that '
            'are scaled to 0..1, see "Bands" below'
        )
    untrained = (
        "\nThis architecture has layers after the distilled feature map, which keep their initial "
        "values (see Limits): use `features_only` or `forward_features`.\n"
        if record.untrained
        else ""
    )
    return f"""## Use
{untrained}
Image embeddings, `(B, {_fact(record.model, "channels")})`{size}:

```python
{first}

model = timm.create_model("{where}", pretrained=True, num_classes=0).eval()
{transform}
```

Feature maps of every stage, for a detector or a segmentation head:

```python
backbone = timm.create_model("{where}", pretrained=True, features_only=True)
```

Verified: the bytes that are parsed are the bytes whose sha256 is in the manifest of {of}.
{more}

```python
import pcd_hub

backbone = pcd_hub.create_model("{ours}", features_only=True){pinned}
```"""


def _pictures(record: WeightRecord, files: list[dict[str, Any]]) -> str:
    names = [file["path"] for file in files if file["path"].endswith(".png")]
    shown = [f"![{_PICTURES.get(name, name)}]({name})" for name in names]
    images = _text(record.pictures) or "generated scenes (pcd_hub, Apache-2.0)"
    note = f"The images are {images}."
    return "\n\n".join(["## Pictures", *shown, note]) if shown else ""


def _method(record: WeightRecord) -> str:
    if record.imported:
        return imported.origin(record)
    teacher, data, hardware = record.teacher, record.data, record.hardware
    seconds = hardware.get("seconds")
    is_measured = isinstance(seconds, int | float)
    minutes = f"{seconds / 60:.1f} minutes" if is_measured else f"time {NOT_MEASURED}"
    start = (
        f"{_start(record.start)}, licence {_fact(record.start, 'license')}, sha256 "
        f"{_fact(record.start, 'sha256')}"
    )
    sentences = [
        _loss(record.config.get("method")),
        *([f"The training started from {_start(record.start)}."] if record.start else []),
        *([_averaged(record.averaged)] if record.averaged else []),
        "The distillation used no labels; the teacher's training may.",
    ]
    facts = {
        "Teacher": f"{_described(teacher)}{_teacher_source(teacher)}, "
        f"{_fact(teacher, 'architecture')}, head {_fact(teacher, 'head')}",
        **({"Start": start} if record.start else {}),
        "Data": f"{_described(data)}{', '.join(map(_text, record.sources)) or NOT_STATED}, "
        f"{_fact(data, 'images')} images, "
        f"fingerprint {_fact(data, 'fingerprint')}",
        **({"Bands": _bands(data)} if _listed(data, "bands") else {}),
        "Training": f"{record.steps} steps, {record.images_seen} images seen (two views each), "
        f"seed {record.seed}",
        "Hardware": f"{_fact(hardware, 'device')}, {_fact(hardware, 'processes')} process(es), "
        f"{minutes} (since the last start)",
        "Energy and CO2": NOT_MEASURED,
    }
    return f"""## Method and data

{" ".join(sentences)}

{chr(10).join(f"- {what}: {fact}" for what, fact in facts.items())}"""


def _described(facts: dict[str, Any]) -> str:
    return f"{_text(facts['description'])}: " if facts.get("description") else ""


def _bands(data: dict[str, Any]) -> str:
    values = " to ".join(map(_text, _listed(data, "band_range"))) or "the range of their type"
    names = ", ".join(map(_text, _listed(data, "bands")))
    return f"{names}: the input channels in this order; values from {values} are scaled to 0 to 1"


def _listed(data: dict[str, Any], key: str) -> list[Any]:
    return values if isinstance(values := data.get(key), list) else []


def _teacher_source(teacher: dict[str, Any]) -> str:
    """Return the teacher's source, with a link if it is on the Hub.

    ``base_model`` is not used: on the Hub it means a fine-tuned, merged or quantized model, which
    is the start (:func:`_start`).
    """
    scheme, _, name = str(teacher.get("source", "")).partition(":")
    if scheme == "timm":
        with suppress(RuntimeError):  # a tag that timm does not know
            cfg = get_pretrained_cfg(name)
            name = str(cfg and cfg.hf_hub_id)
    repo = name.partition("@")[0]
    if scheme not in {"timm", "hf-hub"} or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        return _fact(teacher, "source")
    return f"[{_fact(teacher, 'source')}](https://huggingface.co/{repo})"


def _start(start: dict[str, Any]) -> str:
    """Return the name of the weights that the training started from, linked if on the Hub."""
    name, repo = _fact(start, "name"), hub_repository(start)
    return f"[{name}](https://huggingface.co/{repo})" if repo else name


def _averaged(facts: dict[str, Any]) -> str:
    share = facts.get("share_of_start")
    start = f"{share:.0%}" if isinstance(share, int | float) else "a part"
    return f"These weights are a weighted mean of the trained ones and their start ({start})."


def _loss(method: Any) -> str:
    """Describe the loss, as configured, in a sentence."""
    facts = method if isinstance(method, dict) else {}
    loss, targets = facts.get("loss"), facts.get("targets")
    if (loss, targets) == ("pixel_info_nce", "pixels"):
        maps = facts.get("feature_maps", 1)
        which = f"last {maps} feature maps" if isinstance(maps, int) and maps > 1 else "feature map"
        centred = ", without their common mean" if facts.get("centre_targets") is True else ""
        return (
            f"Each location of this backbone's {which} was attracted to the same location of a "
            f"frozen teacher's, and repelled from a queue of pooled teacher embeddings{centred}."
        )
    return (
        f"This backbone was distilled from a frozen teacher: loss {_text(loss or NOT_STATED)}, "
        f"targets {_text(targets or NOT_STATED)}."
    )


def _limits(record: WeightRecord) -> str:
    lines = [
        "- A backbone without a head: train one for your task.",
        "- Biases of the teacher and of the images carry over.",
    ]
    if record.sources and all(source.startswith("scenes:") for source in record.sources):
        since = " since its start" if record.start else ""
        lines.append(
            f"- Trained on generated scenes only{since}: a demonstration, not for photographs."
        )
    if record.imported:
        lines[1:] = [imported.LIMIT]
    if record.untrained:
        names = ", ".join(map(_text, record.untrained))
        lines.append(f"- Not trained, as the loss does not reach them: {names}.")
    lines += [f"- {_text(note)}" for note in record.notes]
    return "\n".join(["## Limits", "", *lines])


def _licenses(record: WeightRecord, license_link: str | None) -> str:
    rows = [f"| {what} | {_text(record.licenses[what])} |" for what in licensed_parts(record)]
    link = f"\n\nText of the weights' licence: <{license_link}>" if license_link else ""
    return "\n".join(["## Licences", "", "| part | licence |", "|---|---|", *rows]) + link


def _provenance(record: WeightRecord) -> str:
    if record.imported:
        return imported.provenance(record)
    versions = ", ".join(f"{_text(name)} {_text(v)}" for name, v in record.versions.items())
    wheel = ("files of the wheel, sha256", "wheel_sha256")
    kind, key = wheel if wheel[1] in record.code else ("commit", "commit")
    return f"""## Provenance

- Made: {_text(record.created)}, by {_text(record.recipe)}
- Code: {kind} {_fact(record.code, key)}, pcd_hub {_fact(record.code, "pcd_hub")}
- Versions: {versions or NOT_STATED}
- All settings: `{MANIFEST_FILE}` (record sha256 `{record_sha256(record.to_dict())}`)"""


def _files(files: list[dict[str, Any]]) -> str:
    rows = [f"| {file['path']} | {file['size']} | `{file['sha256']}` |" for file in files]
    return "\n".join(["## Files", "", "| file | bytes | sha256 |", "|---|---|---|", *rows])


def _number(facts: dict[str, Any], key: str, unit: float) -> str:
    value = facts.get(key)
    return f"{value / unit:.2f}" if isinstance(value, int | float) else NOT_MEASURED


def _fact(facts: dict[str, Any], key: str) -> str:
    value = facts.get(key)
    return NOT_STATED if value is None else _text(format_size(value))
