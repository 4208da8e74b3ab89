"""Layouts of self-supervised checkpoints: where the encoder and its trained head are in a file."""

from dataclasses import dataclass, replace

from pcd_hub.errors import TeacherError, nearest


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """Key prefixes of one family of checkpoints.

    Prefixes are without the ``module.`` of DistributedDataParallel, which is dropped if all keys
    have it. A key under none of them is an error.
    """

    architecture: str
    """The timm architecture whose keys the encoder has."""
    container: str | None
    """Key of the state dict in the file; None if the file is the state dict."""
    encoder: str
    """Prefix of the encoder to use."""
    head: str | None
    """Prefix of the trained head, numbered as an ``nn.Sequential``.

    None if the family has no head that can be applied to a feature map.
    """
    unused: tuple[str, ...] = ()
    """Prefixes of the other branch, the predictor, prototypes."""
    published: str = ""
    """Instructions to download such a file, for the error if it is missing."""


_MOCOV3 = CheckpointLayout(
    architecture="resnet50",
    container="state_dict",
    encoder="momentum_encoder.",
    head="momentum_encoder.fc.",
    unused=("base_encoder.", "predictor."),
)
_BACKBONE = CheckpointLayout(architecture="resnet50", container=None, encoder="", head=None)

LAYOUTS: dict[str, CheckpointLayout] = {
    "mocov3_r50": replace(
        _MOCOV3,
        published="download r-50-1000ep.pth.tar of MoCo v3's release, "
        "https://dl.fbaipublicfiles.com/moco-v3/r-50-1000ep/r-50-1000ep.pth.tar, and use it as "
        "mocov3_r50:FILE",
    ),
    "mocov3_vit_b": replace(
        _MOCOV3, architecture="vit_base_patch16_224", head="momentum_encoder.head."
    ),
    "byol_r50": CheckpointLayout(
        architecture="resnet50",
        container="model",
        encoder="target_encoder.",
        head="target_encoder.fc.",
        unused=("online_encoder.", "predictor."),
    ),
    "swav_r50": replace(_BACKBONE, head="projection_head.", unused=("prototypes.",)),
    "barlow_twins_r50": CheckpointLayout(
        architecture="resnet50",
        container="model",
        encoder="backbone.",
        head="projector.",
        unused=("bn.",),
    ),
    "dino_r50": _BACKBONE,
}
"""Layouts by the scheme of a teacher's source: ``mocov3_r50:FILE``.

``dino_r50`` is DINO's backbone file; its head (GELU, a normalisation) cannot work on feature maps.
"""

FAMILIES = ("mocov3", "resnet")
"""Schemes with an architecture: ``mocov3:ARCH:FILE``, ``resnet:ARCH:FILE``."""


def layout_of(name: str, architecture: str = "") -> CheckpointLayout:
    """Return a layout by its name in ``LAYOUTS``, or by its family and ``architecture``.

    ``mocov3`` is what ``recipes/pretrain.py`` writes, for any timm ResNet; ``resnet`` the plain
    state dict of a torchvision or timm ResNet, supervised or not, without its classifier.

    Raises:
        TeacherError: If the name is unknown, or a family comes without an architecture.
    """
    if name in FAMILIES and not architecture:
        raise TeacherError(f"{name} needs an architecture, as in {name}:resnet50")
    match name:
        case "mocov3":
            return replace(_MOCOV3, architecture=architecture)
        case "resnet":
            return replace(_BACKBONE, architecture=architecture, unused=("fc.",))
    if name not in LAYOUTS:
        known = (*LAYOUTS, *(f"{family}:ARCH" for family in FAMILIES))
        raise TeacherError(
            f"unknown checkpoint layout '{name}'{nearest(name, known)}; "
            f"expected one of {', '.join(known)}"
        )
    return LAYOUTS[name]
