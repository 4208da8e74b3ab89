"""Small vision backbones, pre-trained without labels for dense prediction, as ordinary timm models.

Importing this registers the timm entries: ``timm.create_model("resnet18.pcd", pretrained=True)``.
It opens no connection and no weight. ``pcd_hub.distill`` is imported when it is first used, because
it needs the extra ``train``.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from pcd_hub.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HubError,
    HubNotFoundError,
    HubUnreachableError,
    PCDHubError,
    StudentError,
    TeacherError,
    WeightError,
)
from pcd_hub.errors import pip_install as _pip_install


def _is_starting_command() -> bool:
    """Return True in the command ``pcd-hub`` until its options are read.

    ``pcd-hub --help`` then imports neither torch nor timm. A command that needs them reloads this
    module (:mod:`pcd_hub.cli.program`). ``sys.orig_argv`` and not ``sys.argv``, which the
    processes of a DataLoader inherit.
    """
    program = next((word for word in sys.orig_argv[1:] if not word.startswith("-")), "")
    is_command = pathlib.PurePath(program).name in {"pcd-hub", "pcd-hub.exe", "pcd_hub"}
    return is_command and "pcd_hub.cli" not in sys.modules


if TYPE_CHECKING or not _is_starting_command():
    from pcd_hub.method.attention import SelfAttention2d
    from pcd_hub.method.distiller import Distiller
    from pcd_hub.method.heads import SpatialReLU, student_head, to_pixel_head
    from pcd_hub.method.loss import cosine_smooth_l1, pixel_info_nce, similarity_kl
    from pcd_hub.method.moments import ChannelMoments
    from pcd_hub.method.optim import LARS, decay_groups
    from pcd_hub.method.queue import KeyQueue
    from pcd_hub.models.entries import register_entries
    from pcd_hub.models.grid import pixel_grid
    from pcd_hub.models.teacher_loading import load_teacher
    from pcd_hub.models.teacher_sources.module import teacher_from_module
    from pcd_hub.weights.catalogue import ListedWeight, has_weight, list_weights
    from pcd_hub.weights.catalogue import find as where
    from pcd_hub.weights.create import create_model, read_by_name
    from pcd_hub.weights.formats.export import export
    from pcd_hub.weights.hub.fetch import FetchedWeight, fetch
    from pcd_hub.weights.hub.publish import Publication, publish
    from pcd_hub.weights.imported.weight import ImportedWeight, import_weights
    from pcd_hub.weights.record import Measurement, WeightRecord

    register_entries(read_by_name, has_weight)

if TYPE_CHECKING:
    from pcd_hub.train.own_images.python import Distilled, distill

__version__ = "0.1.0.dev0"

__all__ = [
    "LARS",
    "ChannelMoments",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Distilled",
    "Distiller",
    "FetchedWeight",
    "HubError",
    "HubNotFoundError",
    "HubUnreachableError",
    "ImportedWeight",
    "KeyQueue",
    "ListedWeight",
    "Measurement",
    "PCDHubError",
    "Publication",
    "SelfAttention2d",
    "SpatialReLU",
    "StudentError",
    "TeacherError",
    "WeightError",
    "WeightRecord",
    "cosine_smooth_l1",
    "create_model",
    "decay_groups",
    "distill",
    "export",
    "fetch",
    "import_weights",
    "list_weights",
    "load_teacher",
    "pixel_grid",
    "pixel_info_nce",
    "publish",
    "similarity_kl",
    "student_head",
    "teacher_from_module",
    "to_pixel_head",
    "where",
]


def __getattr__(name: str) -> object:
    if name not in {"distill", "Distilled"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from pcd_hub.train.own_images import python  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pcd_hub"):
            raise
        return _needs_extra(error)
    return python.distill if name == "distill" else python.Distilled


def _needs_extra(missing: ModuleNotFoundError) -> Callable[..., NoReturn]:
    """Return a function that fails when it is called, so that ``import *`` works without it."""
    message = f"{missing}; {_pip_install('train')}"

    def distill(*_: object, **__: object) -> NoReturn:
        raise ModuleNotFoundError(message, name=missing.name)

    return distill
