"""Write ``tests/golden/transformers``: tiny random models in transformers' format, and features.

    pip install transformers
    python -m tests.models.teacher_sources.transformers_golden

Each folder has what the Hub's have, with weights that float16 holds exactly, and
``features.safetensors``: images, already normalised, and what transformers computes for them.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[2] / "golden" / "transformers"
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "layerscale_value": 0.5,
}
_DINOV2 = {**_VIT, "patch_size": 14, "image_size": 56}
_DINOV3 = {**_VIT, "patch_size": 16, "num_register_tokens": 4}
MODELS = {
    "dinov2": transformers.Dinov2Config(**_DINOV2),
    "dinov2_swiglu": transformers.Dinov2Config(**_DINOV2, use_swiglu_ffn=True),
    "dinov2_registers": transformers.Dinov2WithRegistersConfig(**_DINOV2, num_register_tokens=4),
    "dinov3": transformers.DINOv3ViTConfig(**_DINOV3, intermediate_size=64),
    "dinov3_biases": transformers.DINOv3ViTConfig(**_DINOV3, intermediate_size=64),
    "dinov3_gated": transformers.DINOv3ViTConfig(
        **_DINOV3, intermediate_size=64, use_gated_mlp=True, hidden_act="silu"
    ),
    "dinov3_convnext": transformers.DINOv3ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1], layer_scale_init_value=0.5
    ),
}


@torch.no_grad()
def write(name: str, config: transformers.PretrainedConfig) -> None:
    torch.manual_seed(len(name))
    model = transformers.AutoModel.from_config(config).eval()
    for key, parameter in model.named_parameters():
        values = parameter + 0.2 * torch.randn_like(parameter)
        if (
            name != "dinov3_biases"
            and key.endswith(("q_proj.bias", "v_proj.bias"))
            and "dinov3" in name
        ):
            values = torch.zeros_like(values)
        parameter.copy_(values.half().float())
    images = torch.randn(2, 3, 64, 64).half().float()
    if "dinov2" in name:
        images = images[:, :, :56, :56].contiguous()
    outputs = model(images, output_hidden_states="convnext" in name)
    features = outputs.last_hidden_state
    if "convnext" in name:
        features = outputs.hidden_states[-1]  # the map before pooling and its norm
    folder = GOLDEN / name
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({key: value.half() for key, value in load_file(file).items()}, file)
    processor = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor) + "\n")
    save_file(
        {"images": images.half(), "features": features.contiguous()},
        folder / "features.safetensors",
    )
    print(name, tuple(features.shape), features.std().item())


if __name__ == "__main__":
    for name, config in MODELS.items():
        write(name, config)
