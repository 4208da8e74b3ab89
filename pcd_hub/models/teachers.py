"""What a teacher is: a backbone, perhaps its trained head reshaped to pixels, frozen for ever.

==============================  ====================================================================
``quickstart``                  the small teacher inside this package
``timm:NAME``                   timm's pretrained weights, without a head
``hf-hub:ORG/NAME[@REV]``       the same from a Hub repository
``local-dir:DIR``               a folder in timm's layout, or with ``teacher.json`` (head included)
``mocov3_r50:FILE`` ...         a self-supervised checkpoint with its head (``checkpoints.LAYOUTS``)
``mocov3:ARCH:FILE``            what ``recipes/pretrain.py`` writes, for any timm ResNet
``resnet:ARCH:FILE``            the plain weights of a torchvision or timm ResNet, without a head
==============================  ====================================================================
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from pcd_hub.errors import StudentError, TeacherError, first_line, nearest
from pcd_hub.files.read import read_bounded
from pcd_hub.method.heads import spatial_mean_error, to_pixel_head
from pcd_hub.models.checkpoints import (
    FAMILIES,
    LAYOUTS,
    CheckpointLayout,
    State,
    head_from_state,
    layout_of,
    read_checkpoint,
    read_tensors,
)
from pcd_hub.models.folding import fold_batch_norms
from pcd_hub.models.grid import PixelGrid, Resample, own_image_size, pixel_grid
from pcd_hub.models.timm_loading import (
    PROCESS_STATE,
    cache_alone_if_unreachable,
    create_pretrained,
    describe,
)
from pcd_hub.models.writing import save_tensors

log = logging.getLogger("pcd_hub")

TEACHER_WEIGHTS = "teacher.safetensors"
TEACHER_FACTS = "teacher.json"
ORIGIN_FACTS = ("layout", "source_file", "source_sha256")
_LAW_TOLERANCE = 1e-4  # float32, heads up to 8192 wide
_FOLDED_COSINE = 0.999
_MAX_FACTS_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """Where a teacher came from; goes into every record of a student distilled from it."""

    source: str
    architecture: str
    sha256: str
    """Over the names and values of all tensors, head included, as they are used.

    Position embeddings count as fitted to the input size.
    """
    head: str
    """Layers of the trained head, or "none": then the backbone's own pixels are the target."""
    license: str
    """As its source states it; "not stated" if nobody said."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: dict[str, str] = field(default_factory=dict)
    """Of what was read or converted: ``layout``, ``source_file``, ``source_sha256``."""


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
        self.resample: nn.Module = nn.Identity()
        self._input_size: int | None = None
        self._pixels: Callable[[Tensor], Tensor] = self._seen
        self.requires_grad_(False)  # noqa: FBT003
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":  # noqa: FBT001, FBT002 - torch's signature
        """Stay in eval mode: batch statistics would break the law and move the target."""
        del mode
        return super().train(mode=False)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        with torch.inference_mode():
            pixels = self._pixels(images)
        return pixels.clone()  # an ordinary tensor again: the loss keeps it for its backward pass

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what :meth:`forward` computes, with ``torch.compile``'s arguments."""
        self._pixels = torch.compile(self._seen, *args, **kwargs)

    def _seen(self, images: Tensor) -> Tensor:
        if self._input_size is not None:
            size = self._input_size, self._input_size
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.resample(self.head(self.grid((images - self.mean) / self.std)))

    def set_sizes(
        self, image_size: int, *, input_size: int | None = None, grid: tuple[int, int] | None = None
    ) -> None:
        """From now on resize images of ``image_size`` to ``input_size``, and pixels to ``grid``.

        Every change is said in the log; None changes nothing.

        Raises:
            TeacherError: If THE LAW fails on the resampled pixels.
        """
        self.resample, self._input_size, self._pixels = nn.Identity(), None, self._seen
        if input_size not in {None, image_size}:
            log.info("the teacher sees %d px, the student %d px", input_size, image_size)
            self._input_size = input_size
        own = self.grid_size(image_size)
        if grid is not None and grid != own:
            log.info(
                "the teacher's %d x %d pixels are resampled to the student's %d x %d", *own, *grid
            )
            self.resample = Resample(own, grid).to(self.mean.device)
            self._check_resampled(input_size or image_size)

    def _check_resampled(self, image_size: int) -> None:
        with torch.no_grad():
            maps = self.grid(_noise(self, image_size))
        error = spatial_mean_error(
            # On a single pixel the pixel head is the head it was made from.
            lambda vectors: self.head(vectors[:, :, None, None]).flatten(1),
            lambda maps: self.resample(self.head(maps)),
            maps,
        )
        if not error <= _LAW_TOLERANCE:
            raise TeacherError(
                f"{self.facts.source}: the mean of its resampled pixels differs from its head of "
                f"the mean by {error:.1e} (at most {_LAW_TOLERANCE:.0e}); give it another size "
                "(--teacher.image-size)"
            )

    def grid_size(self, image_size: int) -> tuple[int, int]:
        """Height and width of the pixels of an image of ``image_size``."""
        return _grid_size(self, image_size)

    def fold_batch_norms(self, image_size: int) -> None:
        """Fold batch norms into convolutions: the same pixels but for rounding, sooner.

        Nothing is folded, and it is said, if on noise images any pixel's cosine with what it was
        falls below 0.999, or THE LAW fails afterwards.
        """
        images = _noise(self, image_size)
        self._pixels = self._seen
        folded = copy.deepcopy(self)
        with torch.no_grad():
            maps = folded.grid(images)
            pixels = folded.head(maps)
            count = fold_batch_norms(folded.grid, images) + fold_batch_norms(folded.head, maps)
            maps = folded.grid(images)
            cosine = F.cosine_similarity(folded.head(maps), pixels).min().item()
            vectors = self.head(maps.mean((2, 3), keepdim=True)).flatten(1)
            error = spatial_mean_error(lambda _: vectors, folded.head, maps)
        if cosine >= _FOLDED_COSINE and error <= _LAW_TOLERANCE:
            self.grid, self.head = folded.grid, folded.head
        else:
            log.warning(
                "%d batch norms of the teacher stay as they are: folded, its pixels had a cosine "
                "of %.4f with what they were (at least %s), and THE LAW an error of %.1e",
                *(count, cosine, _FOLDED_COSINE, error),
            )

    @property
    def num_channels(self) -> int:
        """Channels of the pixels: the head's output, or the backbone's."""
        convolutions = [layer for layer in self.head.modules() if isinstance(layer, nn.Conv2d)]
        return convolutions[-1].out_channels if convolutions else self.grid.num_channels


def _grid_size(pixels: nn.Module, image_size: int) -> tuple[int, int]:
    device = next(pixels.parameters()).device
    training = pixels.training
    with torch.no_grad():
        shape = pixels.eval()(torch.zeros(2, 3, image_size, image_size, device=device)).shape
    pixels.train(training)
    return shape[2], shape[3]


def load_teacher(
    source: str, *, image_size: int | None = None, keep_last_norm: bool = True
) -> Teacher:
    """Load a teacher whole, or not at all.

    Args:
        source: One of the forms at the top of this file.
        image_size: Height and width in pixels of the images it will see; its own input size if not
            given.
        keep_last_norm: False leaves out the BatchNorm without weights that ends the heads of
            MoCo v3, as the released PCD code does: other pixels, to compare with.

    Raises:
        TeacherError: If the source is unknown, a file is damaged or of another layout, not every
            weight was loaded, there is no last norm to leave out, or THE LAW
            (``pcd_hub.to_pixel_head``) fails on its head.
    """
    parts = _read(source, image_size)
    if not keep_last_norm:
        parts = dataclasses.replace(parts, head=_without_last_norm(parts.head, source))
    return _assemble(parts, source, image_size)


def load_matched_teacher(
    source: str,
    student: nn.Module,
    *,
    image_size: int,
    teacher_image_size: int | str | None = None,
    keep_last_norm: bool = True,
    fold_batch_norms: bool = False,
) -> Teacher:
    """Load a teacher whose pixels lie on the student's grid.

    Args:
        source: As for :func:`load_teacher`.
        student: images ``(B, 3, H, W)`` -> ``(B, C, h, w)``.
        image_size: Height and width in pixels of the images that both are given.
        teacher_image_size: What the teacher sees of them: None for the same; a number, to which
            they are resized; or ``"match"`` for the size at which its grid is the student's, if
            there is one. Where the grids still differ the teacher's pixels are resampled
            (:class:`~pcd_hub.models.grid.Resample`, which keeps THE LAW).
        keep_last_norm: As for :func:`load_teacher`.
        fold_batch_norms: Into convolutions, as :meth:`Teacher.fold_batch_norms`.

    Raises:
        TeacherError: As :func:`load_teacher`.
    """
    wanted = _grid_size(student, image_size)
    size = teacher_image_size if isinstance(teacher_image_size, int) else image_size
    teacher = load_teacher(source, image_size=size, keep_last_norm=keep_last_norm)
    own = teacher.grid_size(size)
    if teacher_image_size == "match" and own != wanted:
        candidate = round(size * wanted[0] / own[0])
        with contextlib.suppress(TeacherError):  # then it cannot take that size
            resized = load_teacher(source, image_size=candidate, keep_last_norm=keep_last_norm)
            if resized.grid_size(candidate) == wanted:
                teacher, size = resized, candidate
    if fold_batch_norms:
        teacher.fold_batch_norms(size)
    teacher.set_sizes(image_size, input_size=size, grid=wanted)
    return teacher


def save_teacher(
    folder: Path, backbone: State, head: nn.Sequential | None, facts: dict[str, Any]
) -> None:
    """Write ``teacher.safetensors`` and ``teacher.json`` into ``folder``.

    The tensors are named ``backbone.*`` and ``head.*``; the facts get the head's layers.

    Raises:
        TeacherError: If the head cannot work on pixels; nothing is written then.
        OSError: If the system refuses to write.
    """
    if head is not None:
        to_pixel_head(head)
    facts = facts | {"head": _layers(head)}
    tensors = {f"backbone.{key}": value.contiguous() for key, value in backbone.items()}
    if head is not None:
        tensors |= {f"head.{key}": value.contiguous() for key, value in head.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / TEACHER_WEIGHTS)
    (folder / TEACHER_FACTS).write_text(json.dumps(facts, indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a source yields, before it is put together."""

    model: nn.Module
    head: nn.Sequential | None = None
    """On vectors, as it was trained."""
    license: str = "not stated"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    origin: dict[str, str] = field(default_factory=dict)


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises where a name is too long


def _read(source: str, image_size: int | None) -> _Parts:
    scheme, _, rest = source.partition(":")
    if source == "quickstart":
        with resources.as_file(resources.files("pcd_hub.models") / "quickstart_teacher") as folder:
            return _from_teacher_folder(folder, source, image_size)
    if scheme == "local-dir" and _is_file(Path(rest) / TEACHER_FACTS):
        return _from_teacher_folder(Path(rest), source, image_size)
    if scheme in {"timm", "hf-hub", "local-dir"}:
        return _from_timm(source, image_size)
    if scheme in FAMILIES:
        architecture, _, file = rest.partition(":")
        return _from_checkpoint(source, layout_of(scheme, architecture), Path(file), image_size)
    if scheme in LAYOUTS:
        return _from_checkpoint(source, LAYOUTS[scheme], Path(rest), image_size)
    known = ["quickstart", "timm", "hf-hub", "local-dir", *FAMILIES, *LAYOUTS]
    raise TeacherError(
        f"unknown teacher '{source}'{nearest(scheme, known)}; use one of {', '.join(known)}"
    )


def _from_teacher_folder(folder: Path, source: str, image_size: int | None) -> _Parts:
    try:
        facts = _teacher_facts(folder / TEACHER_FACTS)
        architecture = facts["architecture"]
        tensors = read_tensors(folder / TEACHER_WEIGHTS)
    except TeacherError as error:
        raise TeacherError(f"{folder} holds no whole teacher: {error}") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise TeacherError(
            f"{folder} holds no whole teacher ({type(error).__name__}: {error}); convert it again"
        ) from error
    tensors = {
        key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
    }
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
    if (stated := facts.get("head", _layers(vector_head))) != _layers(vector_head):
        raise TeacherError(
            f"{folder / TEACHER_FACTS} says the head is {stated}, its weights are read as "
            f"{_layers(vector_head)}; heads of Linear, BatchNorm1d and ReLU can work on pixels. "
            "Leave the head out to use the backbone's own pixels"
        )
    return _Parts(
        model=_whole_model(architecture, backbone, source, image_size),
        head=vector_head,
        license=facts.get("license", "not stated"),
        mean=tuple(facts.get("mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(facts.get("std", IMAGENET_DEFAULT_STD)),
        origin={key: facts[key] for key in ORIGIN_FACTS if key in facts},
    )


def _teacher_facts(file: Path) -> dict[str, Any]:
    facts = json.loads(read_bounded(file, _MAX_FACTS_BYTES))
    if not isinstance(facts, dict) or not isinstance(facts["architecture"], str):
        raise TypeError("teacher.json names no architecture")
    if not isinstance(facts.get("license", ""), str):
        raise TypeError("license is no text")
    for name in ("mean", "std"):
        values = facts.get(name, [1.0] * 3)
        if not isinstance(values, list) or len(values) != 3 or {*map(type, values)} - {int, float}:
            raise ValueError(f"{name} is not three numbers")
        if not all(abs(value) < 1e3 for value in values) or (name == "std" and min(values) <= 0):
            raise ValueError(f"{name} {values} is out of bounds")
    return facts


def _from_checkpoint(
    source: str, layout: CheckpointLayout, file: Path, image_size: int | None
) -> _Parts:
    checkpoint = read_checkpoint(file.expanduser(), layout)
    return _Parts(
        model=_whole_model(layout.architecture, checkpoint.encoder, source, image_size),
        head=checkpoint.head,
        origin={"source_file": file.name, "source_sha256": checkpoint.sha256},
    )


def _whole_model(architecture: str, state: State, source: str, image_size: int | None) -> nn.Module:
    """A timm model with exactly these weights, told of ``image_size`` if its size is fixed."""
    if not timm.is_model(architecture):
        raise TeacherError(
            f"{source}: timm has no architecture '{architecture}'"
            f"{nearest(architecture, timm.list_models())}"
        )
    model = timm.create_model(architecture, pretrained=False, num_classes=0)
    expected = model.state_dict()
    # A mere counter, which old torchvision files do not have and eval mode does not read.
    counters = {key: value for key, value in expected.items() if key.endswith("batches_tracked")}
    state = counters | state
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
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
    if image_size and _is_fixed(model.pretrained_cfg) and hasattr(model, "set_input_size"):
        with contextlib.suppress(AssertionError, ValueError):  # pixel_grid will say why not
            model.set_input_size(img_size=image_size)  # pyright: ignore[reportCallIssue]
    return model


def _from_timm(source: str, image_size: int | None) -> _Parts:
    name = source.removeprefix("timm:")
    if source.startswith("timm:") and not timm.is_model(name):
        raise TeacherError(
            f"timm has no model '{name}'{nearest(name.split('.')[0], timm.list_models())}"
        )
    with cache_alone_if_unreachable(name) as silence:
        try:
            with _missing_keys() as missing:
                model = create_pretrained(name, num_classes=0, **_size_argument(source, image_size))
        except Exception as error:
            why = f"{silence}, nor its cache ({type(error).__name__})" if silence else None
            raise TeacherError(
                f"cannot load {source}: {why or first_line(error).rstrip('.')}. "
                "A teacher needs its pretrained weights: check the name and the network, "
                "or give a file (local-dir:DIR, LAYOUT:FILE)"
            ) from error
    if missing:
        raise TeacherError(
            f"{source}: {len(missing)} weights were not in its file "
            f"({', '.join(missing[:3])}); refused"
        )
    cfg: Any = model.pretrained_cfg
    return _Parts(
        model=model,
        license=cfg.get("license") or "not stated",
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )


def _size_argument(source: str, image_size: int | None) -> dict[str, Any]:
    """Models of a fixed input size (most ViTs) are told the size.

    Their position embeddings are resampled when loaded.
    """
    if described := describe(source):
        cfg: Any = described.cfg
    else:
        known = timm.get_pretrained_cfg(source.removeprefix("timm:"))
        cfg = known.to_dict() if known is not None else {}
    return {"img_size": image_size} if image_size and _is_fixed(cfg) else {}


def _is_fixed(pretrained_cfg: Any) -> bool:
    return bool(pretrained_cfg.get("fixed_input_size"))


@contextlib.contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """Every key that a ``load_state_dict`` of this thread inside the block did not find.

    timm only logs them, and goes on. One thread at a time.
    """
    missing: list[str] = []
    ours = threading.get_ident()

    with PROCESS_STATE:
        load_state_dict = nn.Module.load_state_dict

        def recording(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = load_state_dict(self, *args, **kwargs)
            if threading.get_ident() == ours:
                missing.extend(result.missing_keys)
            return result

        with mock.patch.object(nn.Module, "load_state_dict", recording):
            yield missing


def _without_last_norm(head: nn.Sequential | None, source: str) -> nn.Sequential:
    if head is None or not (isinstance(head[-1], nn.BatchNorm1d) and not head[-1].affine):
        raise TeacherError(
            f"{source}: its head ({_layers(head)}) does not end in a BatchNorm without weights; "
            "keep it as it is (--teacher.keep-last-norm)"
        )
    return head[:-1]


def _layers(head: nn.Sequential | None) -> str:
    return "none" if head is None else "-".join(type(layer).__name__ for layer in head)


def _assemble(parts: _Parts, source: str, image_size: int | None) -> Teacher:
    model: Any = parts.model
    try:
        grid = pixel_grid(model, image_size=image_size)
    except StudentError as error:
        raise TeacherError(
            f"{source}: {error}; the teacher may see another size (--teacher.image-size)"
        ) from error
    pixel_head = to_pixel_head(parts.head) if parts.head is not None else None
    facts = TeacherFacts(
        source=source,
        architecture=model.pretrained_cfg["architecture"],
        sha256=_tensors_sha256(model, parts.head),
        head=_layers(parts.head),
        license=parts.license,
        mean=parts.mean,
        std=parts.std,
        origin=parts.origin,
    )
    teacher = Teacher(grid, pixel_head, facts)
    if parts.head is not None and pixel_head is not None:
        _check_law(teacher, parts.head.eval(), pixel_head, image_size or own_image_size(model))
    return teacher


def _check_law(
    teacher: Teacher, vector_head: nn.Module, pixel_head: nn.Module, image_size: int
) -> None:
    """Hold the law on the real backbone's features of noise images."""
    with torch.no_grad():
        maps = teacher.grid(_noise(teacher, image_size))
        if maps.shape[1] != next(pixel_head.parameters()).shape[1]:
            raise TeacherError(
                f"{teacher.facts.source}: "
                f"its head takes {next(pixel_head.parameters()).shape[1]} channels, "
                f"its backbone gives {maps.shape[1]}"
            )
        error = spatial_mean_error(vector_head, pixel_head, maps)
    if not error <= _LAW_TOLERANCE:
        raise TeacherError(
            f"{teacher.facts.source}: "
            f"mean of the pixel head differs from the head of the mean by {error:.1e} "
            f"(at most {_LAW_TOLERANCE:.0e}): its head cannot work on pixels"
        )


def _noise(teacher: Teacher, image_size: int) -> Tensor:
    """Two normalised noise images, always the same."""
    images = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return (images.to(teacher.mean.device) - teacher.mean) / teacher.std


def _tensors_sha256(model: nn.Module, head: nn.Module | None) -> str:
    digest = hashlib.sha256()
    for module in (model, head):
        for key, value in sorted(module.state_dict().items()) if module is not None else ():
            digest.update(key.encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
