"""The architectures that each framework has, with the names and options that build them there."""

from typing import Any, NamedTuple

from pcd_hub.weights.formats.key_maps import (
    DETECTRON2_RESNET,
    MMDET_RESNET_V1D,
    TIMM,
    TORCHVISION_CONVNEXT,
    TRANSFORMERS_RESNET,
    ULTRALYTICS_RESNET,
    KeyMap,
)


class Held(NamedTuple):
    """An architecture in a framework."""

    keys: KeyMap
    options: dict[str, Any]
    """What builds it there; ``name`` is the class or function."""


_LAYERS = {
    "resnet18": [2, 2, 2, 2],
    "resnet34": [3, 4, 6, 3],
    "resnet50": [3, 4, 6, 3],
    "resnet101": [3, 4, 23, 3],
    "resnet152": [3, 8, 36, 3],
}
_DEPTHS = {name: int(name.removeprefix("resnet")) for name in _LAYERS}
_RESNEXTS = {"resnext50_32x4d": (50, 32, 4), "resnext101_32x8d": (101, 32, 8)}

TORCHVISION = {
    **{name: Held(TIMM, {"name": name, "head": "fc"}) for name in (*_LAYERS, *_RESNEXTS)},
    "wide_resnet50_2": Held(TIMM, {"name": "wide_resnet50_2", "head": "fc"}),
    **{
        name: Held(TORCHVISION_CONVNEXT, {"name": name, "head": "classifier[2]"})
        for name in ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
    },
}
"""torchvision 0.21: ``torchvision.models``."""

DETECTRON2 = {
    **{
        name: Held(
            DETECTRON2_RESNET,
            {
                "DEPTH": depth,
                "RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
                "STRIDE_IN_1X1": False,
            },
        )
        for name, depth in _DEPTHS.items()
    },
    **{
        name: Held(
            DETECTRON2_RESNET,
            {
                "DEPTH": depth,
                "NUM_GROUPS": groups,
                "WIDTH_PER_GROUP": width,
                "STRIDE_IN_1X1": False,
            },
        )
        for name, (depth, groups, width) in _RESNEXTS.items()
    },
}
"""detectron2 0.6: ``MODEL.RESNETS`` of ``build_resnet_backbone``."""

MMDET = {
    **{name: Held(TIMM, {"name": "ResNet", "depth": depth}) for name, depth in _DEPTHS.items()},
    **{
        f"{name}d": Held(MMDET_RESNET_V1D, {"name": "ResNetV1d", "depth": depth})
        for name, depth in _DEPTHS.items()
    },
    **{
        name: Held(TIMM, {"name": "ResNeXt", "depth": depth, "groups": groups, "base_width": width})
        for name, (depth, groups, width) in _RESNEXTS.items()
    },
}
"""mmdet 3.3: ``mmdet.models.backbones``."""

ULTRALYTICS = {
    name: Held(
        ULTRALYTICS_RESNET,
        {
            "name": name,
            "channels": (128, 256, 512) if _DEPTHS.get(name, 50) < 50 else (512, 1024, 2048),
        },
    )
    for name in (*_LAYERS, *_RESNEXTS, "wide_resnet50_2")
}
"""ultralytics 8.4: ``TorchVision`` and ``Index``; channels of strides 8, 16 and 32."""

TRANSFORMERS = {
    name: Held(
        TRANSFORMERS_RESNET,
        {
            "name": "ResNetModel",
            "depths": layers,
            "layer_type": "basic" if _DEPTHS[name] < 50 else "bottleneck",
            "hidden_sizes": [(64 if _DEPTHS[name] < 50 else 256) * 2**stage for stage in range(4)],
        },
    )
    for name, layers in _LAYERS.items()
}
"""transformers 5: ``ResNetConfig``; others load there through timm."""
