"""Write folders in the layouts of timm and transformers."""

from pathlib import Path, PurePath
from typing import Any

from pcd_hub.models.tensor_files import save_tensors
from pcd_hub.weights.formats.architectures import TRANSFORMERS
from pcd_hub.weights.formats.key_maps import TIMM, renamed
from pcd_hub.weights.formats.readme import (
    Usage,
    band_names,
    in_chans,
    normalisation,
    note_of_bands,
)
from pcd_hub.weights.layout import CONFIG_FILE, WEIGHTS_FILE
from pcd_hub.weights.load import ReadWeight
from pcd_hub.weights.manifest import write_json


def write_timm(weight: ReadWeight, folder: Path, place: PurePath) -> Usage:
    """Write a folder in the layout of timm's Hub repositories."""
    _write_timm_layout(weight, folder)
    is_rgb = not band_names(weight)
    transform = "timm.data.create_transform(**timm.data.resolve_model_data_config(backbone))"
    return Usage(
        file=WEIGHTS_FILE,
        code=f"""import timm
backbone = timm.create_model("local-dir:{place}", pretrained=True, features_only=True)"""
        + f"\ntransform = {transform}" * is_rgb,
        notes=() if is_rgb else (note_of_bands(weight, "timm"),),
    )


def write_transformers(weight: ReadWeight, folder: Path, place: PurePath) -> Usage:
    """Write a folder for transformers: its own ResNet, or timm's network in its wrapper."""
    mean, std = normalisation(weight, 1)
    is_rgb = not band_names(weight)
    load_processor = f'\nprocessor = AutoImageProcessor.from_pretrained("{place}")' * is_rgb
    notes = () if is_rgb else (note_of_bands(weight, "transformers"),)
    size = weight.config["pretrained_cfg"]["input_size"]
    processor: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size[1], "width": size[2]},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    found = TRANSFORMERS.get(weight.config["architecture"])
    if found is None:
        _write_timm_layout(weight, folder)
        return Usage(
            file=WEIGHTS_FILE,
            code=f"""from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained("{place}")  # needs timm"""
            + load_processor,
            notes=notes,
        )
    options = {key: value for key, value in found.options.items() if key != "name"}
    config = {
        "model_type": "resnet",
        "architectures": [found.options["name"]],
        "num_channels": in_chans(weight),
        "embedding_size": 64,
        "hidden_act": "relu",
        **options,
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "dtype": "float32",  # transformers 5 would take that of the stored kernels
    }
    write_json(folder / CONFIG_FILE, config)
    if is_rgb:
        write_json(folder / "preprocessor_config.json", processor)
    save_tensors(renamed(weight.tensors, found.keys), folder / WEIGHTS_FILE)
    return Usage(
        file=WEIGHTS_FILE,
        code=f"""from transformers import AutoImageProcessor, AutoModel, ResNetBackbone
model = AutoModel.from_pretrained("{place}")
backbone = ResNetBackbone.from_pretrained("{place}", out_indices=(1, 2, 3, 4))"""
        + load_processor,
        notes=notes,
    )


def _write_timm_layout(weight: ReadWeight, folder: Path) -> None:
    config = {key: value for key, value in weight.config.items() if key != "pcd"}
    write_json(folder / CONFIG_FILE, config)
    save_tensors(renamed(weight.tensors, TIMM), folder / WEIGHTS_FILE)
