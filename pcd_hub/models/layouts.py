"""Layouts of self-supervised checkpoints: the keys of the encoder and its trained head."""

from dataclasses import dataclass, replace

from pcd_hub.errors import TeacherError, nearest


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """Key prefixes of one family of checkpoints.

    The prefixes do not include DistributedDataParallel's ``module.``, which is removed if all keys
    have it. A key that matches no prefix is an error.
    """

    architecture: str
    """The encoder's architecture in timm."""
    container: str | None
    """Key of the state dict in the file; None if the file is the state dict."""
    encoder: str
    """Prefix of the teacher's encoder."""
    head: str | None
    """Prefix of the trained head, whose layers are numbered like an ``nn.Sequential``.

    None if the family has no head that can be applied to a feature map.
    """
    unused: tuple[str, ...] = ()
    """Prefixes to ignore: the other branch, the predictor, the prototypes."""
    published: str = ""
    """Download instructions, for the error message if the file is missing."""


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
"""Layouts by name, which is the scheme in a teacher's source, such as ``mocov3_r50:FILE``.

``dino_r50`` is DINO's backbone file: DINO's head (GELU, L2 norm) cannot be applied to feature maps.
"""

FAMILIES = ("mocov3", "resnet")
"""Schemes that take an architecture: ``mocov3:ARCH:FILE``, ``resnet:ARCH:FILE``."""


def layout_of(name: str, architecture: str = "") -> CheckpointLayout:
    """Return a layout by its name in ``LAYOUTS``, or by its family and ``architecture``.

    ``mocov3`` is the format of ``recipes/pretrain.py``, for any timm ResNet. ``resnet`` is the
    state dict of a torchvision or timm ResNet, supervised or not; its classifier is ignored.

    Raises:
        TeacherError: If the name is unknown, or a family is given without an architecture.
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
