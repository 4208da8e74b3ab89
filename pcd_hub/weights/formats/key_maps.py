"""The names of a backbone's tensors in other frameworks, as substitutions in timm's names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """Names and shapes of one family of architectures in another framework."""

    rules: tuple[tuple[str, str], ...] = ()
    """Regular expressions and replacements, applied to timm's name one after the other."""
    absent: str | None = None
    """Regular expression of the timm names that the framework does not have."""
    per_channel: str | None = None
    """Regular expression of the new names whose tensors are ``(C, 1, 1)``; in timm ``(C,)``."""

    def is_per_channel(self, new_name: str) -> bool:
        """Return whether the framework's tensor is ``(C, 1, 1)`` and timm's ``(C,)``."""
        return self.per_channel is not None and re.search(self.per_channel, new_name) is not None


TIMM = KeyMap()
"""The names of timm; those of torchvision's and mmdet's ResNets are the same."""

DETECTRON2_RESNET = KeyMap(
    rules=(
        (r"^(conv1|bn1)\.", r"stem.\1."),
        (r"^layer1\.", "res2."),
        (r"^layer2\.", "res3."),
        (r"^layer3\.", "res4."),
        (r"^layer4\.", "res5."),
        (r"\bbn(\d)\.", r"conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
    ),
    absent=r"\.num_batches_tracked$",  # of FrozenBN, detectron2's default
)

SEQUENTIAL_RESNET = KeyMap(
    rules=(
        *((r"^conv1\.", "0."), (r"^bn1\.", "1.")),  # then the activation and the pooling
        *((rf"^layer{number}\.", f"{number + 3}.") for number in (1, 2, 3, 4)),
    )
)
"""``nn.Sequential(*resnet.children())``, as in Lightly's examples."""

MMDET_RESNET_V1D = KeyMap(rules=((r"^conv1\.", "stem."), (r"^bn1\.", "stem.7.")))

TRANSFORMERS_RESNET = KeyMap(
    rules=(
        (r"^conv1\.", "embedder.embedder.convolution."),
        (r"^bn1\.", "embedder.embedder.normalization."),
        (r"^layer1\.", "encoder.stages.0.layers."),
        (r"^layer2\.", "encoder.stages.1.layers."),
        (r"^layer3\.", "encoder.stages.2.layers."),
        (r"^layer4\.", "encoder.stages.3.layers."),
        (r"\.conv1\.", ".layer.0.convolution."),
        (r"\.bn1\.", ".layer.0.normalization."),
        (r"\.conv2\.", ".layer.1.convolution."),
        (r"\.bn2\.", ".layer.1.normalization."),
        (r"\.conv3\.", ".layer.2.convolution."),
        (r"\.bn3\.", ".layer.2.normalization."),
        (r"\.downsample\.0\.", ".shortcut.convolution."),
        (r"\.downsample\.1\.", ".shortcut.normalization."),
    ),
)

ULTRALYTICS_RESNET = KeyMap(
    rules=(
        (r"^conv1\.", "model.0.m.0."),
        (r"^bn1\.", "model.0.m.1."),
        (r"^layer1\.", "model.0.m.4."),
        (r"^layer2\.", "model.0.m.5."),
        (r"^layer3\.", "model.0.m.6."),
        (r"^layer4\.", "model.0.m.7."),
    )
)
"""torchvision's ResNet, unwrapped by ultralytics, as the first layer of a detector."""

TORCHVISION_CONVNEXT = KeyMap(
    rules=(
        (r"^stem\.", "features.0."),
        (r"^stages\.0\.blocks\.", "features.1."),
        (r"^stages\.1\.downsample\.", "features.2."),
        (r"^stages\.1\.blocks\.", "features.3."),
        (r"^stages\.2\.downsample\.", "features.4."),
        (r"^stages\.2\.blocks\.", "features.5."),
        (r"^stages\.3\.downsample\.", "features.6."),
        (r"^stages\.3\.blocks\.", "features.7."),
        (r"\.conv_dw\.", ".block.0."),
        (r"\.norm\.(?=\w+$)", ".block.2."),
        (r"\.mlp\.fc1\.", ".block.3."),
        (r"\.mlp\.fc2\.", ".block.5."),
        (r"\.gamma$", ".layer_scale"),
        (r"^head\.block\.2\.", "classifier.0."),
    ),
    per_channel=r"\.layer_scale$",
)


def new_names(names: Iterable[str], keys: KeyMap) -> dict[str, str]:
    """Return the framework's name of each timm name that it has."""
    found = {}
    for name in names:
        if keys.absent and re.search(keys.absent, name):
            continue
        new = name
        for pattern, replacement in keys.rules:
            new = re.sub(pattern, replacement, new)
        found[name] = new
    return found


def renamed(tensors: Mapping[str, Tensor], keys: KeyMap) -> dict[str, Tensor]:
    """Return the tensors with the names and shapes of a framework."""
    state = {}
    for name, new in new_names(tensors, keys).items():
        value = tensors[name].detach().clone().contiguous()
        if keys.is_per_channel(new):
            value = value[:, None, None].contiguous()
        state[new] = value
    return state
