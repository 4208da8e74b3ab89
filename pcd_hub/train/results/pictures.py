"""Pictures of a finished distillation: feature maps and receptive fields on the run's images."""

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcd_hub.data.decoding import BrokenImageError
from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.errors import DataError, first_line
from pcd_hub.evaluate.receptive_field import effective_receptive_field, side_of_half
from pcd_hub.evaluate.scene_probe import scene_mosaics
from pcd_hub.image_size import ImageSize, format_size, height_width, simplest
from pcd_hub.models.entries import entry_cfg
from pcd_hub.models.grid import PixelGrid, pixel_grid
from pcd_hub.report.features import save_fields, save_pca
from pcd_hub.report.page.run_folder import Notes
from pcd_hub.report.run_report import Sheet
from pcd_hub.train.batches import only_scenes
from pcd_hub.train.distillation.state import Distillation
from pcd_hub.train.held_out.images import CentreCrop

log = logging.getLogger("pcd_hub")

FEATURES, RECEPTIVE_FIELD = "features.png", "receptive_field.png"
_STUDENT, _TEACHER = "distilled student", "teacher"
_NUM_IMAGES = 4
_MAX_TRIED = 16
"""Images that are opened to find ``_NUM_IMAGES`` that are not broken."""
_SHORT_SIDE = 320
"""A training view's feature map, often of 3 x 3 locations, is too small for a picture."""
_MULTIPLE = 32


def draw_own_images(d: Distillation) -> Notes:
    """Draw feature maps and receptive fields on images of the run; a failure is only logged.

    The pictures show images of the user: they are for the report and never published.

    Returns:
        Notes that describe the pictures.
    """
    try:
        crops, names, kind = _own_images(d)
        features = _draw_features(d, crops, names, kind)
        fields = _receptive_fields(d, crops)
        save_fields(d.folder.path / "pictures" / RECEPTIVE_FIELD, list(fields.values()))
    except Exception as error:  # the weight is complete: no picture may lose the run
        log.warning("no pictures of the features for the report: %s", first_line(error))
        return Notes()
    return Notes(
        features=features,
        receptive_field=Sheet(
            path=f"pictures/{RECEPTIVE_FIELD}", rows=("",), columns=tuple(fields)
        ),
        receptive_sides=tuple(side_of_half(field) for field in fields.values()),
    )


def picture_size(image_size: ImageSize) -> tuple[int, int]:
    """Return the size of the pictures' images: the shape of a training view, but larger."""
    height, width = height_width(image_size)
    scale = _SHORT_SIDE / min(height, width)
    if scale <= 1:
        return height, width
    return _rounded(height * scale), _rounded(width * scale)


def _rounded(side: float) -> int:
    return _MULTIPLE * round(side / _MULTIPLE)


def _own_images(d: Distillation) -> tuple[UInt8[Tensor, "n bands height width"], list[str], str]:
    """Read centre crops of held-out images, or of training images if none are held out."""
    height, width = picture_size(d.config.data.image_size)
    crop = CentreCrop(height=height, width=width)
    held_out = d.held_out_source
    read = list(itertools.islice(_crops(held_out or d.source, crop), _NUM_IMAGES))
    if not read:
        raise DataError(f"none of {_MAX_TRIED} images can be read")
    kind = "held-out images" if held_out is not None else "training images"
    if only_scenes(d.config.data.source):
        kind = "generated scenes it was trained on"
    crops = torch.stack([image for _, image in read])
    return crops, [name for name, _ in read], f"{kind}, {format_size((height, width))} px"


def _crops(
    source: ImageSource | ImageStream, crop: CentreCrop
) -> Iterator[tuple[str, UInt8[Tensor, "bands height width"]]]:
    """Yield the images that can be read, with their names."""
    if isinstance(source, ImageStream):
        opened = itertools.islice(source.read(state=None), _MAX_TRIED)
        for number, (image, _) in enumerate(opened):
            yield from _readable(f"image {number}", lambda image=image: image(crop))
        return
    for row in _rows(len(source)):
        yield from _readable(source.name(row), lambda row=row: source.read(row, crop))


def _rows(count: int) -> list[int]:
    """Return rows spread over a source, as neighbours are often alike; then their neighbours."""
    starts = [place * count // _NUM_IMAGES for place in range(_NUM_IMAGES)]
    tries = range(_MAX_TRIED // _NUM_IMAGES)
    return list(dict.fromkeys(min(at + n, count - 1) for n in tries for at in starts))


def _readable(
    name: str, read: Callable[[], Tensor]
) -> Iterator[tuple[str, UInt8[Tensor, "bands height width"]]]:
    try:
        yield name, read()
    except BrokenImageError:
        return


@torch.no_grad()
def _draw_features(
    d: Distillation, crops: UInt8[Tensor, "n bands height width"], names: list[str], kind: str
) -> Sheet:
    images = crops.to(d.accelerator.device).float() / 255
    maps = {d.start_label: _student_map(d, d.start, images)}
    maps[_STUDENT] = _student_map(d, d.student, images)
    maps[_TEACHER] = _teacher_map(d, images)
    bands = crops[:, :3] if crops.shape[1] >= 3 else crops[:, [0, 0, 0]]
    save_pca(d.folder.path / "pictures" / FEATURES, bands, maps)
    return Sheet(
        path=f"pictures/{FEATURES}", rows=("image", *maps), columns=tuple(names), images=kind
    )


def _student_map(
    d: Distillation, model: nn.Module, images: Float[Tensor, "n bands height width"]
) -> Float[Tensor, "n c h w"]:
    taken = _for_student(d, images)
    return _student_grid(d, model, taken)(d.normalise(taken)).float().cpu()


def _student_grid(d: Distillation, model: nn.Module, images: Tensor) -> PixelGrid:
    model = model.to(images.device).eval()
    size, bands = d.config.data.image_size, len(d.config.data.bands)
    return pixel_grid(model, image_size=size, in_chans=bands)


def _teacher_map(
    d: Distillation, images: Float[Tensor, "n bands height width"]
) -> Float[Tensor, "n c h w"]:
    """Return the teacher's feature maps on its own grid, without changing its sizes."""
    teacher = d.teacher
    cfg = getattr(teacher.grid.model, "pretrained_cfg", None) or {}
    if cfg.get("fixed_input_size"):
        images = _resized(images, teacher.input_size or d.config.data.image_size)
    if teacher.bands is not None:
        images = images[:, teacher.bands]
    return teacher.head(teacher.grid((images - teacher.mean) / teacher.std)).float().cpu()


def _for_student(
    d: Distillation, images: Float[Tensor, "n bands height width"]
) -> Float[Tensor, "n bands h w"]:
    """Return the images, as large as a training view if the student takes no other size."""
    fixed = entry_cfg(d.config.student.arch).fixed_input_size
    return _resized(images, d.config.data.image_size) if fixed else images


def _resized(
    images: Float[Tensor, "n bands height width"], size: ImageSize
) -> Float[Tensor, "n bands h w"]:
    return F.interpolate(images, height_width(size), mode="bilinear", antialias=True)


def _receptive_fields(
    d: Distillation, crops: UInt8[Tensor, "n bands height width"]
) -> dict[str, Float[Tensor, "h w"]]:
    """Return the effective receptive fields of the start and of the student on one image."""
    images = _for_student(d, crops[:1].to(d.accelerator.device).float() / 255)
    fields = {}
    for name, model in ((d.start_label, d.start), (_STUDENT, d.student)):
        network = _student_grid(d, model, images)
        field = effective_receptive_field(
            lambda x, network=network: network(d.normalise(x)), images
        )
        fields[name] = field.cpu()
    return fields


@torch.inference_mode()
def draw_feature_maps(d: Distillation, path: Path) -> None:
    """Draw teacher and student feature maps of generated scenes: a picture to publish."""
    teacher, cfg = d.teacher, entry_cfg(d.config.student.arch)
    device = d.accelerator.device
    teacher_cfg = getattr(teacher.grid.model, "pretrained_cfg", None) or {}
    if cfg.fixed_input_size or teacher_cfg.get("fixed_input_size"):
        images = scene_mosaics(8, tiles=1, size=d.config.data.image_size)
    else:  # a training view's feature map is too small for a figure
        images = scene_mosaics(2, tiles=4)
        teacher.set_sizes(images.shape[-1])
    student = pixel_grid(d.student, image_size=simplest(images.shape[2:]))
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (cfg.mean, cfg.std))
    values = images.to(device).float() / 255
    feature_maps = {
        "teacher": teacher(values).float().cpu(),
        "student": student.eval()((values - mean) / std).float().cpu(),
    }
    save_pca(path, images, feature_maps)
