"""Export a trained backbone to a folder in the Hub's layout, which timm can load."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pcd_hub.errors import StudentError, WeightError
from pcd_hub.files.writable import temporary_folder
from pcd_hub.files.write import atomic_folder
from pcd_hub.image_size import ImageSize, height_width
from pcd_hub.models.entries import build_arguments, entry_cfg, size_argument
from pcd_hub.models.tensor_files import save_tensors
from pcd_hub.weights.cards.card import render_card
from pcd_hub.weights.input_bands import InputBands
from pcd_hub.weights.layout import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import (
    file_entries,
    files_in,
    read_manifest,
    record_pointer,
    write_json,
    write_manifest,
)
from pcd_hub.weights.record import NOT_STATED, Measurement, WeightRecord

_OF_THE_METHOD = {"description", "paper_ids", "paper_name"}


def export_weight(
    state: Mapping[str, Tensor],
    record: WeightRecord,
    folder: Path,
    *,
    image_size: ImageSize = 224,
    bands: InputBands | None = None,
    pictures: Iterable[Path] = (),
) -> Path:
    """Write the export to ``folder``, complete or not at all.

    The folder contains ``model.safetensors``, ``config.json``, the model card ``README.md``, the
    pictures, and ``pcd_manifest.json`` with the record, extended by the model's size and cost.
    The weights are loaded strictly into a new timm model, and so is the finished folder; the
    outputs of both models must agree.

    Args:
        state: The backbone's state dict, with timm's keys and without a head.
        record: The provenance of the weights.
        folder: A path that does not exist yet.
        image_size: Size of the images in pixels for the cost; for an architecture with a fixed
            input size, the size it was built with.
        bands: Bands of the input; red, green and blue if not given.
        pictures: PNG files for the card.

    Raises:
        WeightError: If the state does not fit the architecture, contains NaN or infinity, or
            ``folder`` exists.
        OSError: If ``folder`` cannot be written.
    """
    if folder.exists():
        raise WeightError(f"{folder} exists already; export to a new folder")
    bands = bands or InputBands.rgb(record.architecture)
    model = _fresh_model(state, record, image_size, in_chans=len(bands.names))
    with atomic_folder(folder) as draft:
        tensors = {
            # Cloned because CoaT has shared tensors, which safetensors rejects.
            key: value.detach().cpu().contiguous().clone()
            for key, value in model.state_dict().items()
        }
        save_tensors(tensors, draft / WEIGHTS_FILE)
        for picture in pictures:
            shutil.copyfile(picture, draft / picture.name)
        record = replace(record, model=_model_facts(model, image_size, len(bands.names)))
        describe(draft, record, _timm_config(model, record, image_size, bands))
        _compare(model, draft, image_size, len(bands.names))
    return folder


def add_measurements(export: Path, measured: Mapping[str, Measurement], folder: Path) -> Path:
    """Copy an export to a new folder and add measurements to its record and card.

    Args:
        export: A folder written by :func:`export_weight`; it is verified and left unchanged.
        measured: Measurements by a short name; existing ones of the same name and protocol are
            replaced.
        folder: A path that does not exist yet.

    Raises:
        WeightError: If the export is damaged or contains other files, or ``folder`` exists.
    """
    if folder.exists():
        raise WeightError(f"{folder} exists already; name a new folder")
    weight = read_weight(export)
    listed = {entry["path"] for entry in read_manifest(export)["files"]} | {MANIFEST_FILE}
    if foreign := sorted(files_in(export).keys() - listed):
        raise WeightError(f"{export} contains {foreign[0]}, which is not part of it; move it away")
    metrics = dict(weight.record.metrics)
    for name, table in measured.items():
        metrics[_free_name(name, table, metrics)] = asdict(table)
    record = replace(weight.record, metrics=metrics)
    with atomic_folder(folder) as draft:
        for name in listed - {CONFIG_FILE, CARD_FILE, MANIFEST_FILE}:
            (draft / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(export / name, draft / name)
        is_shipped = "stored_as" in record.model
        describe(draft, record, weight.config, is_shipped=is_shipped)
        read_weight(draft)
    return folder


def _free_name(name: str, table: Measurement, metrics: Mapping[str, Any]) -> str:
    """Return ``name``, with a suffix if it already has a measurement of another protocol."""
    if name not in metrics or metrics[name]["protocol"] == table.protocol:
        return name
    return f"{name}_{hashlib.sha256(table.protocol.encode()).hexdigest()[:6]}"


def check_exportable(
    model: nn.Module,
    architecture: str,
    *,
    image_size: ImageSize,
    bands: InputBands | None = None,
) -> None:
    """Export a randomly initialised model, to detect export errors before training starts.

    Raises:
        StudentError: If the model cannot be exported, or the exported weights load differently.
        ConfigError: If temporary files cannot be written.
    """
    with temporary_folder() as scratch, torch.random.fork_rng():
        trial = WeightRecord.trial(architecture)
        try:
            export_weight(
                model.state_dict(), trial, scratch / "trial", image_size=image_size, bands=bands
            )
        except WeightError as error:
            raise StudentError(f"{architecture} cannot be exported: {error}") from error


def describe(
    folder: Path,
    record: WeightRecord,
    config: dict[str, Any],
    *,
    repo: str | None = None,
    license_link: str | None = None,
    is_shipped: bool = False,
) -> None:
    """Write config, card and manifest next to the weights and pictures in ``folder``.

    The output is deterministic: the same record gives the same bytes.

    Raises:
        WeightError: If the record lacks a field that the card requires.
    """
    cfg = {key: value for key, value in config["pretrained_cfg"].items() if key != "license"}
    if (license_id := record.licenses.get("weights", NOT_STATED)) != NOT_STATED:
        cfg["license"] = license_id
    config = {**config, "pretrained_cfg": cfg, "pcd": record_pointer(record.to_dict())}
    write_json(folder / CONFIG_FILE, config)
    card = render_card(
        record,
        files=file_entries(folder),
        repo=repo,
        license_link=license_link,
        is_shipped=is_shipped,
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8", newline="\n")
    write_manifest(folder, record.to_dict())


@torch.inference_mode()
def _model_facts(model: nn.Module, image_size: ImageSize, in_chans: int) -> dict[str, Any]:
    """Return the model's size, and its cost per image (convolutions and matrix products only)."""
    images = torch.zeros(1, in_chans, *height_width(image_size))
    with FlopCounterMode(display=False) as counter:
        embedding = model.eval()(images)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "channels": embedding.shape[1],
        "macs": counter.get_total_flops() // 2,
        "image_size": image_size,
    }


def _fresh_model(
    state: Mapping[str, Tensor], record: WeightRecord, image_size: ImageSize, *, in_chans: int
) -> nn.Module:
    arguments = build_arguments(record.architecture, image_size, in_chans=in_chans)
    model = timm.create_model(record.architecture, pretrained=False, num_classes=0, **arguments)
    try:
        model.load_state_dict(
            {
                key: value.float() if value.is_floating_point() else value
                for key, value in state.items()
            },
            strict=True,
        )
    except RuntimeError as error:
        raise WeightError(
            f"the weights do not fit timm's {record.architecture}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    check_finite(model.state_dict())
    return model


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Check that every value is finite.

    Raises:
        WeightError: If a tensor contains NaN or infinity; the message names the first one.
    """
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightError(
            f"{len(broken)} tensors have NaN or infinity, first {broken[0]}; the training diverged"
        )


def _timm_config(
    model: nn.Module, record: WeightRecord, image_size: ImageSize, bands: InputBands
) -> dict[str, Any]:
    """Return the content of timm's config.json.

    :func:`describe` adds pcd_hub's keys at the root: timm rejects unknown ones in
    ``pretrained_cfg``.
    """
    cfg = entry_cfg(record.architecture)
    fixed_size = size_argument(record.architecture, image_size)
    architecture, _, tag = record.name.partition(".")
    ours = {"architecture": architecture, "tag": tag, "custom_load": False}
    stock = cfg.to_dict(remove_source=True)
    if record.imported:  # of pcd_hub's method
        stock = {key: value for key, value in stock.items() if key not in _OF_THE_METHOD}
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": model.num_features,
        "pretrained_cfg": {**stock, **ours},
        # Present even if empty, because transformers writes it back.
        "model_args": fixed_size,
    }
    if fixed_size:
        config["pretrained_cfg"]["input_size"] = [3, *height_width(image_size)]
    if bands != InputBands.rgb(record.architecture):
        _set_bands(config, bands)
    return config


def _set_bands(config: dict[str, Any], bands: InputBands) -> None:
    """State the bands of the input.

    Without ``first_conv``, timm loads the first layer as it is. Otherwise it would take it for one
    of RGB images, and replace weights of four or more channels by random ones.
    """
    cfg, in_chans = config["pretrained_cfg"], len(bands.names)
    cfg |= {"mean": list(bands.mean), "std": list(bands.std)}
    if in_chans != 3:
        config["model_args"] = {**config["model_args"], "in_chans": in_chans}
        cfg |= {"input_size": [in_chans, *cfg["input_size"][1:]], "first_conv": None}


@torch.inference_mode()
def _compare(model: nn.Module, folder: Path, image_size: ImageSize, in_chans: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, in_chans, *height_width(image_size), generator=generator)
    config = json.loads((folder / CONFIG_FILE).read_text())
    cfg = {**config["pretrained_cfg"], "file": str(folder / WEIGHTS_FILE)}
    arguments: dict[str, Any] = {"num_classes": 0, **config.get("model_args", {})}
    again = timm.create_model(
        config["architecture"], pretrained=True, pretrained_cfg=cfg, **arguments
    )
    expected = model.eval().forward_features(images)  # pyright: ignore[reportCallIssue]
    actual = again.eval().forward_features(images)  # pyright: ignore[reportCallIssue]
    branches = (
        [(expected, actual)] if isinstance(expected, Tensor) else zip(expected, actual, strict=True)
    )
    state = again.state_dict()
    if not (
        all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        and all(_equal_up_to_rounding(one, other) for one, other in branches)
    ):
        raise WeightError(
            f"{folder} does not load as the weights that were written; please report this"
        )


def _equal_up_to_rounding(one: Tensor, other: Tensor) -> bool:
    """Compare with a tolerance: the order of summation can depend on memory alignment."""
    return bool((one - other).abs().max() <= 1e-5 * one.abs().max())
