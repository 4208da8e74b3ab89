"""Load a teacher from its source.

==============================  ====================================================================
``quickstart``                  the small teacher included in this package
``auto``                        the first reachable of a list of recommended teachers
``timm:NAME``                   timm's pretrained weights, without a head
``timm:ARCH[.TAG]:FILE``        a checkpoint file of any timm architecture, without a head
``hf-hub:ORG/NAME[@REV]``       timm weights from a Hub repository, without a head
``local-dir:DIR``               a folder in timm's layout, in that of transformers (DINOv2, DINOv3),
                                or with ``teacher.json`` (and a head)
``mocov3_r50:FILE`` ...         a self-supervised checkpoint with its head (``layouts.LAYOUTS``)
``mocov3:ARCH:FILE``            a checkpoint of ``recipes/pretrain.py``, for any timm ResNet
``resnet:ARCH:FILE``            the weights of a torchvision or timm ResNet, without a head
==============================  ====================================================================
"""

import dataclasses
import os
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from pcd_hub.errors import StudentError, TeacherError, first_line
from pcd_hub.image_size import ImageSize
from pcd_hub.method.heads import (
    Adaptor,
    spatial_mean_error,
    to_pixel_head,
)
from pcd_hub.models.checkpoints import read_checkpoint
from pcd_hub.models.grid import default_image_size, pixel_grid
from pcd_hub.models.layouts import FAMILIES, LAYOUTS, CheckpointLayout, layout_of
from pcd_hub.models.teacher_folder import TEACHER_FACTS, format_layers, read_teacher_folder
from pcd_hub.models.teacher_sources import module as own_module
from pcd_hub.models.teacher_sources import names
from pcd_hub.models.teacher_sources.agreement import normalisation_warning
from pcd_hub.models.teacher_sources.choice import AUTO, choose_teacher
from pcd_hub.models.teacher_sources.matching import log_warnings, match_loaded
from pcd_hub.models.teacher_sources.own_file import read_own_file
from pcd_hub.models.teacher_sources.parts import (
    Numbers,
    TeacherParts,
    build_model,
    has_fixed_size,
    with_normalisation,
)
from pcd_hub.models.teacher_sources.transformers_folder import (
    is_transformers_folder,
    read_transformers_folder,
)
from pcd_hub.models.teachers import (
    MEAN_TOLERANCE,
    Teacher,
    TeacherFacts,
    noise_images,
)
from pcd_hub.models.tensor_files import tensors_sha256
from pcd_hub.models.timm_loading import (
    cache_alone_if_unreachable,
    create_pretrained,
    read_config,
)

_ORIGIN = ("layout", "source_file", "source_sha256")


def load_teacher(
    source: str,
    *,
    image_size: ImageSize | None = None,
    keep_last_norm: bool = True,
    adaptor: Adaptor = "spatial",
    mean: Numbers | None = None,
    std: Numbers | None = None,
) -> Teacher:
    """Load a teacher; every weight must be in its source.

    Args:
        source: One of the forms at the top of this file.
        image_size: Size of its images in pixels; default: the model's input size.
        keep_last_norm: False removes the non-affine BatchNorm at the end of MoCo v3's heads, as
            the released PCD code does, which changes the feature maps.
        adaptor: The ReLU of the head on feature maps (``pcd_hub.to_pixel_head``).
        mean: Mean of each channel with which it was trained; default: as stated by the source.
        std: Standard deviation of each channel; default: as stated by the source.

    Raises:
        TeacherError: If the source is unknown, a file is damaged or has another layout, a weight is
            missing, there is no last norm to remove, ``"plain"`` is given without a head, or the
            head cannot be applied to feature maps: the mean of the pixel head's output must equal
            the vector head's output for the mean (``pcd_hub.to_pixel_head``).
    """
    given = {"mean": mean, "std": std}
    teacher = _load(source, image_size, keep_last_norm=keep_last_norm, adaptor=adaptor, **given)
    log_warnings(teacher)
    return teacher


def load_matched_teacher(
    source: str,
    student: nn.Module,
    *,
    image_size: ImageSize,
    teacher_image_size: ImageSize | str | None = None,
    keep_last_norm: bool = True,
    adaptor: Adaptor = "spatial",
    mean: Numbers | None = None,
    std: Numbers | None = None,
) -> Teacher:
    """Load a teacher whose feature maps have the student's height and width.

    Args:
        source: See :func:`load_teacher`.
        student: A network, images ``(B, 3, H, W)`` -> feature maps ``(B, C, h, w)``.
        image_size: Size of the images in pixels.
        teacher_image_size: The size to which the teacher resizes them: None for no change, a
            number for the shorter side with the aspect ratio of the images, height and width, or
            ``"match"`` for the size at which its feature maps have the student's height and width,
            if there is one. Feature maps that still differ are resampled
            (:class:`~pcd_hub.method.resampling.Resample`).
        keep_last_norm: See :func:`load_teacher`.
        adaptor: See :func:`load_teacher`.
        mean: See :func:`load_teacher`.
        std: See :func:`load_teacher`.

    Raises:
        TeacherError: See :func:`load_teacher`.
    """
    given = {"mean": mean, "std": std}

    def load(size: ImageSize) -> Teacher:
        return _load(source, size, keep_last_norm=keep_last_norm, adaptor=adaptor, **given)

    return match_loaded(load, student, image_size=image_size, teacher_image_size=teacher_image_size)


def _load(
    source: str,
    image_size: ImageSize | None,
    *,
    keep_last_norm: bool,
    adaptor: Adaptor,
    mean: Numbers | None,
    std: Numbers | None,
) -> Teacher:
    if source == AUTO:
        source = choose_teacher(image_size=image_size).source
    parts = with_normalisation(read_parts(source, image_size), source, mean=mean, std=std)
    if not keep_last_norm:
        parts = dataclasses.replace(parts, head=_without_last_norm(parts.head, source))
    if adaptor == "plain" and parts.head is None:
        raise TeacherError(
            f"{source}: --teacher.adaptor plain changes a projection head, found none; leave it out"
        )
    return _assemble(parts, source, image_size, adaptor)


def read_parts(source: str, image_size: ImageSize | None = None) -> TeacherParts:
    """Read backbone, head and facts of a teacher; see :func:`load_teacher`."""
    scheme, _, rest = source.partition(":")
    if source == "quickstart":
        with resources.as_file(resources.files("pcd_hub.models") / "quickstart_teacher") as folder:
            return _from_teacher_folder(folder, source, image_size)
    if scheme == "local-dir":
        folder = Path(rest).expanduser()
        return _from_folder(folder, f"local-dir:{folder}", image_size)
    if scheme == "timm" and ":" in rest:
        architecture, _, file = rest.partition(":")
        return read_own_file(Path(file).expanduser(), architecture, source, image_size)
    if scheme in {"timm", "hf-hub"}:
        return _from_timm(source, image_size)
    if scheme in FAMILIES:
        architecture, _, file = rest.partition(":")
        layout = layout_of(scheme, architecture)
        return dataclasses.replace(
            _from_checkpoint(source, layout, Path(file), image_size), is_normalisation_stated=False
        )
    if scheme in LAYOUTS:
        return _from_checkpoint(source, LAYOUTS[scheme], Path(rest), image_size)
    if scheme == own_module.SCHEME:
        raise TeacherError(
            f"{source} is a module that was given in Python: pass it again, as in "
            "pcd_hub.distill(teacher=module)"
        )
    known = [AUTO, "quickstart", "timm", "hf-hub", "local-dir", *FAMILIES, *LAYOUTS]
    raise names.unknown_teacher(source, known)


def _from_folder(folder: Path, source: str, image_size: ImageSize | None) -> TeacherParts:
    names.check_folder(folder)
    if _is_file(folder / TEACHER_FACTS):
        return _from_teacher_folder(folder, source, image_size)
    if is_transformers_folder(folder):
        return read_transformers_folder(folder, source, image_size)
    return _from_timm(source, image_size)


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises if a name is too long


def _from_teacher_folder(path: Path, source: str, image_size: ImageSize | None) -> TeacherParts:
    folder = read_teacher_folder(path)
    facts = folder.facts
    return TeacherParts(
        model=build_model(facts["architecture"], folder.backbone, source, image_size),
        head=folder.head,
        license=facts.get("license", "not stated"),
        mean=tuple(facts.get("mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(facts.get("std", IMAGENET_DEFAULT_STD)),
        is_normalisation_stated="mean" in facts and "std" in facts,
        training_size=_training_size(facts),
        origin={key: facts[key] for key in _ORIGIN if key in facts},
    )


def _training_size(facts: dict[str, Any]) -> int | None:
    """Return the image size of the pre-training, which a teacher of pcd_hub states."""
    value: Any = facts
    for key in ("config", "data", "image_size"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int) and value > 0 else None


def _from_checkpoint(
    source: str, layout: CheckpointLayout, file: Path, image_size: ImageSize | None
) -> TeacherParts:
    checkpoint = read_checkpoint(file.expanduser(), layout)
    return TeacherParts(
        model=build_model(layout.architecture, checkpoint.encoder, source, image_size),
        head=checkpoint.head,
        origin={"source_file": file.name, "source_sha256": checkpoint.sha256},
    )


def _from_timm(source: str, image_size: ImageSize | None) -> TeacherParts:
    name = source.removeprefix("timm:")
    if source.startswith("timm:"):
        names.check_timm_name(name)
    with cache_alone_if_unreachable(name) as unreachable:
        try:
            model = create_pretrained(name, num_classes=0, **_size_argument(source, image_size))
            config = read_config(source)
        except Exception as error:
            why = f"{unreachable}, nor its cache ({type(error).__name__})" if unreachable else None
            raise TeacherError(
                f"cannot load {source}: {why or first_line(error).rstrip('.')}. "
                f"{names.remedy_for(error)}"
            ) from error
    cfg: Any = model.pretrained_cfg
    return TeacherParts(
        model=model,
        license=cfg.get("license") or "not stated",
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        is_normalisation_stated=config is None or {"mean", "std"} <= config.pretrained_cfg.keys(),
    )


def _size_argument(source: str, image_size: ImageSize | None) -> dict[str, Any]:
    """Return ``img_size`` for models with a fixed input size, such as most ViTs.

    timm resamples their position embeddings on loading.
    """
    if config := read_config(source):
        cfg: Any = config.pretrained_cfg
    else:
        known = timm.get_pretrained_cfg(source.removeprefix("timm:"))
        cfg = known.to_dict() if known is not None else {}
    return {"img_size": image_size} if image_size and has_fixed_size(cfg) else {}


def _without_last_norm(head: nn.Sequential | None, source: str) -> nn.Sequential:
    if head is None or not (isinstance(head[-1], nn.BatchNorm1d) and not head[-1].affine):
        raise TeacherError(
            f"{source}: its head ({format_layers(head)}) does not end in a BatchNorm without "
            "weights; keep it as it is (--teacher.keep-last-norm)"
        )
    return head[:-1]


def _assemble(
    parts: TeacherParts, source: str, image_size: ImageSize | None, adaptor: Adaptor
) -> Teacher:
    model: Any = parts.model
    try:
        grid = pixel_grid(model, image_size=image_size)
    except StudentError as error:
        raise TeacherError(
            f"{source}: {error}; the teacher may have another size (--teacher.image-size)"
        ) from error
    pixel_head = to_pixel_head(parts.head, adaptor=adaptor) if parts.head is not None else None
    facts = TeacherFacts(
        source=source,
        architecture=model.pretrained_cfg["architecture"],
        sha256=tensors_sha256(*(part.state_dict() for part in (model, parts.head) if part)),
        head=format_layers(parts.head) + (" (plain ReLU)" if adaptor == "plain" else ""),
        license=parts.license,
        mean=parts.mean,
        std=parts.std,
        origin=parts.origin,
    )
    teacher = Teacher(grid, pixel_head, facts)
    teacher.training_size = parts.training_size
    unlike = normalisation_warning(parts, architecture=facts.architecture)
    teacher.warnings = (*parts.warnings, unlike) if unlike else parts.warnings
    if (
        parts.head is not None and pixel_head is not None
    ):  # of either adaptor, the spatial one commutes with the mean
        size = image_size or default_image_size(model)
        # Not made twice: new layers draw random numbers, and the student's start follows.
        spatial = pixel_head if adaptor == "spatial" else to_pixel_head(parts.head)
        _check_head(teacher, parts.head.eval(), spatial, size)
    return teacher


def _check_head(
    teacher: Teacher, vector_head: nn.Module, pixel_head: nn.Module, image_size: ImageSize
) -> None:
    """Check that both heads agree on feature maps of noise images."""
    with torch.no_grad():
        maps = teacher.grid(noise_images(teacher, image_size))
        expected = next(pixel_head.parameters()).shape[1]
        if maps.shape[1] != expected:
            raise TeacherError(
                f"{teacher.facts.source}: its backbone has {maps.shape[1]} channels, its head "
                f"expects {expected}"
            )
        error = spatial_mean_error(vector_head, pixel_head, maps)
    if not error <= MEAN_TOLERANCE:
        raise TeacherError(
            f"{teacher.facts.source}: the mean of its pixel head's output differs from its head of "
            f"the mean by {error:.1e}, expected at most {MEAN_TOLERANCE:.0e}; its head cannot be "
            "applied to feature maps"
        )
