"""What a teacher is: a backbone, perhaps its trained head reshaped to pixels, frozen for ever.

==============================  ====================================================================
``quickstart``                  the small teacher inside this package
``timm:NAME``                   timm's pretrained weights, without a head
``hf-hub:ORG/NAME[@REV]``       the same from a Hub repository
``local-dir:DIR``               a folder in timm's layout, or with ``teacher.json`` (head included)
``mocov3_r50:FILE`` ...         a self-supervised checkpoint with its head (``checkpoints.LAYOUTS``)
``mocov3:ARCH:FILE``            what ``recipes/pretrain.py`` writes, for any timm ResNet
==============================  ====================================================================
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from pcd_hub.errors import StudentError, TeacherError, nearest
from pcd_hub.method.heads import law_error, to_pixel_head
from pcd_hub.models.checkpoints import LAYOUTS, State, head_from_state, moco_layout, read_checkpoint
from pcd_hub.models.grid import PixelGrid, own_image_size, pixel_grid

log = logging.getLogger("pcd_hub")

TEACHER_WEIGHTS = "teacher.safetensors"
TEACHER_FACTS = "teacher.json"
_LAW_TOLERANCE = 1e-4  # float32, heads up to 8192 wide


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """Where a teacher came from; goes into every record of a student distilled from it."""

    source: str
    architecture: str
    sha256: str
    """Over the names and values of all tensors, head included."""
    head: str
    """Layers of the trained head, or "none": then the backbone's own pixels are the target."""
    license: str
    """As its source states it; "not stated" if nobody said."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Teacher(nn.Module):
    """images ``(B, 3, H, W)`` in [0, 1] -> pixels ``(B, num_channels, h, w)``.

    In eval mode whatever ``.train()`` says. The teacher's own mean and std are applied here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, grid: PixelGrid, head: nn.Sequential | None, facts: TeacherFacts) -> None:
        super().__init__()
        self.grid = grid
        self.head = head if head is not None else nn.Identity()
        self.facts = facts
        self.register_buffer("mean", torch.tensor(facts.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(facts.std).view(3, 1, 1))
        self._grid_size: tuple[int, int] | None = None
        self.requires_grad_(False)  # noqa: FBT003
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":  # noqa: FBT001, FBT002 - torch's signature
        """Stay in eval mode: batch statistics would break the law and move the target."""
        del mode
        return super().train(mode=False)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        with torch.inference_mode():
            pixels = self.head(self.grid((images - self.mean) / self.std))
            pixels = pixels if self._grid_size is None else _resampled(pixels, self._grid_size)
        return pixels.clone()  # an ordinary tensor again: the loss keeps it for its backward pass

    def match_grid(self, student: nn.Module, *, image_size: int) -> None:
        """Give pixels on the student's grid from now on.

        Where the grids differ they are resampled, and it is said.
        """
        probe = torch.zeros(1, 3, image_size, image_size)
        with torch.no_grad():
            own, wanted = self.eval()(probe).shape[-2:], student.eval()(probe).shape[-2:]
        if own != wanted:
            log.info(
                "the teacher's %d x %d pixels are resampled to the student's %d x %d", *own, *wanted
            )
            self._grid_size = wanted[0], wanted[1]

    @property
    def num_channels(self) -> int:
        """Channels of the pixels: the head's output, or the backbone's."""
        convolutions = [layer for layer in self.head.modules() if isinstance(layer, nn.Conv2d)]
        return convolutions[-1].out_channels if convolutions else self.grid.num_channels


def _resampled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Area means where the grid gets coarser, bilinear where it gets finer."""
    if pixels.shape[-2] >= size[0] and pixels.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(pixels, size)
    return F.interpolate(pixels.float(), size, mode="bilinear")


def load_teacher(source: str, *, image_size: int | None = None) -> Teacher:
    """Load a teacher whole, or not at all.

    Args:
        source: One of the forms at the top of this file.
        image_size: Height and width in pixels of the images it will see; its own input size if not
            given.

    Raises:
        TeacherError: If the source is unknown, a file is damaged or of another layout, not every
            weight was loaded, or THE LAW (``pcd_hub.to_pixel_head``) fails on its head.
    """
    scheme, _, rest = source.partition(":")
    if source == "quickstart":
        with resources.as_file(resources.files("pcd_hub.models") / "quickstart_teacher") as folder:
            return _from_teacher_folder(folder, source, image_size)
    if scheme == "local-dir" and (Path(rest) / TEACHER_FACTS).is_file():
        return _from_teacher_folder(Path(rest), source, image_size)
    if scheme in {"timm", "hf-hub", "local-dir"}:
        return _from_timm(source, image_size)
    if scheme == "mocov3":
        architecture, _, file = rest.partition(":")
        return _from_checkpoint(source, moco_layout(architecture), Path(file), image_size)
    if scheme in LAYOUTS:
        return _from_checkpoint(source, LAYOUTS[scheme], Path(rest), image_size)
    known = ["quickstart", "timm", "hf-hub", "local-dir", "mocov3", *LAYOUTS]
    raise TeacherError(
        f"unknown teacher '{source}'{nearest(scheme, known)}; use one of {', '.join(known)}"
    )


def save_teacher(
    folder: Path, backbone: State, head: nn.Sequential | None, facts: dict[str, Any]
) -> None:
    """Write ``teacher.safetensors`` and ``teacher.json`` into ``folder``.

    The tensors are named ``backbone.*`` and ``head.*``.
    """
    tensors = {f"backbone.{key}": value.contiguous() for key, value in backbone.items()}
    if head is not None:
        tensors |= {f"head.{key}": value.contiguous() for key, value in head.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TEACHER_WEIGHTS, metadata={"format": "pt"})
    (folder / TEACHER_WEIGHTS).chmod(0o644)  # safetensors writes 0600
    (folder / TEACHER_FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def _from_teacher_folder(folder: Path, source: str, image_size: int | None) -> Teacher:
    try:
        facts = json.loads((folder / TEACHER_FACTS).read_text())
        tensors = {
            key: value.float() if value.is_floating_point() else value
            for key, value in load_file(folder / TEACHER_WEIGHTS).items()
        }
        architecture = facts["architecture"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TeacherError(
            f"{folder} holds no whole teacher ({type(error).__name__}: {error}); convert it again"
        ) from error
    backbone = {
        key.removeprefix("backbone."): value
        for key, value in tensors.items()
        if key.startswith("backbone.")
    }
    head = {
        key.removeprefix("head."): value
        for key, value in tensors.items()
        if key.startswith("head.")
    }
    vector_head = head_from_state(head, folder) if head else None
    model = _whole_model(architecture, backbone, source)
    return _assemble(
        model,
        vector_head,
        source=source,
        license=facts.get("license", "not stated"),
        mean=tuple(facts.get("mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(facts.get("std", IMAGENET_DEFAULT_STD)),
        image_size=image_size,
    )


def _from_checkpoint(source: str, layout: Any, file: Path, image_size: int | None) -> Teacher:
    backbone, vector_head = read_checkpoint(file.expanduser(), layout)
    return _assemble(
        _whole_model(layout.architecture, backbone, source),
        vector_head,
        source=source,
        license="not stated",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        image_size=image_size,
    )


def _whole_model(architecture: str, state: State, source: str) -> nn.Module:
    """A timm model with exactly these weights."""
    if not timm.is_model(architecture):
        raise TeacherError(
            f"{source}: timm has no architecture '{architecture}'"
            f"{nearest(architecture, timm.list_models())}"
        )
    model = timm.create_model(architecture, pretrained=False, num_classes=0)
    expected, given = set(model.state_dict()), set(state)
    if expected != given:
        missing, extra = sorted(expected - given), sorted(given - expected)
        raise TeacherError(
            f"{source} does not fit {architecture}: "
            f"{len(missing)} keys missing ({', '.join(missing[:3])}), "
            f"{len(extra)} unknown ({', '.join(extra[:3])}); is it another architecture or layout?"
        )
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise TeacherError(
            f"{source} does not fit {architecture}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model


def _from_timm(source: str, image_size: int | None) -> Teacher:
    name = source.removeprefix("timm:")
    if source.startswith("timm:") and not timm.is_model(name):
        raise TeacherError(
            f"timm has no model '{name}'{nearest(name.split('.')[0], timm.list_models())}"
        )
    try:
        with _missing_keys() as missing:
            model = timm.create_model(
                name, pretrained=True, num_classes=0, **_size_argument(name, image_size)
            )
    except Exception as error:
        said = str(error).strip()
        raise TeacherError(
            f"cannot load {source}: {said.splitlines()[0] if said else type(error).__name__}. "
            "A teacher needs its pretrained weights: check the name and the network, "
            "or give a file (local-dir:DIR, LAYOUT:FILE)"
        ) from error
    if missing:
        raise TeacherError(
            f"{source}: {len(missing)} weights were not in its file "
            f"({', '.join(missing[:3])}); refused"
        )
    cfg: Any = model.pretrained_cfg
    return _assemble(
        model,
        None,
        source=source,
        license=cfg.get("license") or "not stated",
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        image_size=image_size,
    )


def _size_argument(name: str, image_size: int | None) -> dict[str, Any]:
    """ViTs of a fixed input size are told the size.

    Their position embeddings are resampled when loaded.
    """
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return (
        {"img_size": image_size} if cfg is not None and cfg.fixed_input_size and image_size else {}
    )


@contextlib.contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """Every key that a ``load_state_dict`` inside the block did not find.

    timm only logs them, and goes on.
    """
    missing: list[str] = []
    load_state_dict = nn.Module.load_state_dict

    def recording(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load_state_dict(self, *args, **kwargs)
        missing.extend(result.missing_keys)
        return result

    with mock.patch.object(nn.Module, "load_state_dict", recording):
        yield missing


def _assemble(
    model: nn.Module,
    vector_head: nn.Sequential | None,
    *,
    source: str,
    license: str,  # noqa: A002
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: int | None,
) -> Teacher:
    try:
        grid = pixel_grid(model, image_size=image_size)
    except StudentError as error:
        raise TeacherError(f"{source}: {error}") from error
    pixel_head = to_pixel_head(vector_head) if vector_head is not None else None
    facts = TeacherFacts(
        source=source,
        architecture=model.pretrained_cfg["architecture"],  # pyright: ignore[reportIndexIssue, reportArgumentType]
        sha256=_tensors_sha256(model, vector_head),
        head="-".join(type(layer).__name__ for layer in vector_head)
        if vector_head is not None
        else "none",
        license=license,
        mean=mean,
        std=std,
    )
    teacher = Teacher(grid, pixel_head, facts)
    if vector_head is not None and pixel_head is not None:
        _check_law(teacher, vector_head.eval(), pixel_head, image_size or own_image_size(model))
    return teacher


def _check_law(
    teacher: Teacher, vector_head: nn.Module, pixel_head: nn.Module, image_size: int
) -> None:
    """Hold the law on the real backbone's features of noise images."""
    images = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = teacher.grid((images - teacher.mean) / teacher.std)
        if maps.shape[1] != next(pixel_head.parameters()).shape[1]:
            raise TeacherError(
                f"{teacher.facts.source}: "
                f"its head takes {next(pixel_head.parameters()).shape[1]} channels, "
                f"its backbone gives {maps.shape[1]}"
            )
        error = law_error(vector_head, pixel_head, maps)
    if not error <= _LAW_TOLERANCE:
        raise TeacherError(
            f"{teacher.facts.source}: "
            f"mean of the pixel head differs from the head of the mean by {error:.1e} "
            f"(at most {_LAW_TOLERANCE:.0e}): its head cannot work on pixels"
        )


def _tensors_sha256(model: nn.Module, head: nn.Module | None) -> str:
    digest = hashlib.sha256()
    for module in (model, head):
        for key, value in sorted(module.state_dict().items()) if module is not None else ():
            digest.update(key.encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
