"""Small vision backbones, pre-trained without labels for dense prediction, as ordinary timm models.

Importing this registers the timm entries: ``timm.create_model("resnet18.pcd", pretrained=True)``.
It opens no connection and no weight.
"""

from pcd_hub.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PCDHubError,
    StudentError,
    TeacherError,
    WeightError,
)
from pcd_hub.method.attention import SelfAttention2d
from pcd_hub.method.distiller import Distiller
from pcd_hub.method.heads import SpatialReLU, student_head, to_pixel_head
from pcd_hub.method.loss import cosine_smooth_l1, pixel_info_nce, similarity_kl
from pcd_hub.method.moments import ChannelMoments
from pcd_hub.method.optim import LARS, decay_groups
from pcd_hub.method.queue import KeyQueue
from pcd_hub.models.entries import register_entries
from pcd_hub.models.grid import pixel_grid
from pcd_hub.models.teachers import load_teacher
from pcd_hub.weights.record import WeightRecord
from pcd_hub.weights.store import find_weights, where

__version__ = "0.1.0.dev0"

__all__ = [
    "LARS",
    "ChannelMoments",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Distiller",
    "KeyQueue",
    "PCDHubError",
    "SelfAttention2d",
    "SpatialReLU",
    "StudentError",
    "TeacherError",
    "WeightError",
    "WeightRecord",
    "cosine_smooth_l1",
    "decay_groups",
    "load_teacher",
    "pixel_grid",
    "pixel_info_nce",
    "similarity_kl",
    "student_head",
    "to_pixel_head",
    "where",
]

register_entries(find_weights)
