"""Settings of labelled data sets, which evaluations and fine-tuning share."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pcd_hub.image_size import ImageSize, height_width
from pcd_hub.train.configs.fields import Bounds, Count, ImageSide, Workers

LARGEST_SIDE = 224
"""Side to which labelled images are reduced by default, whose feature maps fit into memory."""

MaskFormat = Literal["masks", "coco", "yolo", "voc", "labelme", "cvat"]


@dataclass(frozen=True, kw_only=True)
class MaskSetConfig:
    """Images with a class label for every pixel."""

    source: str = ""
    """Labelled images: a folder with images/SPLIT, masks/SPLIT and
    classes.json, or with labels of another layout or tool
    (docs/labels.md); ade20k:DIR, voc:DIR or cityscapes:DIR; hf-disk:DIR
    or hf:ORG/NAME."""
    format: Literal["auto", "masks", "coco", "yolo", "voc", "labelme", "cvat"] = "auto"
    """Format of the labels in a folder: masks as images, or a tool's
    objects, which are drawn as masks. auto: recognised by the files;
    masks first."""
    overlap: Literal["smaller", "later"] = "smaller"
    """For objects: which of several gets a pixel. smaller: the one with the
    smaller area. later: the one that comes later in the file."""
    unlabelled: Literal["background", "ignore"] = "background"
    """For objects: class of a pixel in none of them. background: class 0.
    ignore: no class, so it is neither trained nor scored."""
    bad_annotations: Literal["error", "drop"] = "error"
    """For objects: action on an invalid one, such as a polygon outside its
    image. drop: leave it out of both splits and log the number."""
    train_split: str = "train"
    """Name of the split to train on."""
    test_split: str = "val"
    """Name of the split to evaluate on."""
    image_column: str = "image"
    """For a Hugging Face data set: column of the images."""
    mask_column: str = "mask"
    """For a Hugging Face data set: column of the masks."""
    num_classes: Annotated[int, Bounds(int, 2, 254)] | None = None
    """For a Hugging Face data set: number of classes (required)."""
    ignore: Annotated[int, Bounds(int, 0, 255)] | None = 255
    """For a Hugging Face data set: mask value of pixels without a label."""
    reduce_zero_label: bool = False
    """For a Hugging Face data set: 0 means no label, and class c is stored as c + 1."""


@dataclass(frozen=True, kw_only=True)
class SegmentationSetConfig(MaskSetConfig):
    """Images with a class label for every pixel."""

    check: bool = False
    """Print what the masks and images contain (images and pixels by class,
    masks that do not fit, images in both splits ...), and exit."""


@dataclass(frozen=True, kw_only=True)
class ProbeDataConfig(MaskSetConfig):
    """Labelled images that score the student during the run: mean IoU of a linear probe.

    They are not trained on; nothing of the run depends on them.
    """

    num_images: Count = 128
    """Largest number of images of each split, spread evenly over it."""
    image_size: ImageSide | None = None
    """Height and width in pixels to which images and masks are resized.
    None: the larger side of a view, at most 224."""


def resolve_probe_data(data: ProbeDataConfig, image_size: ImageSize) -> ProbeDataConfig:
    """Return the settings with the size of the images, if there are any.

    Args:
        data: The configured set.
        image_size: Size of a view.
    """
    if not data.source or data.image_size is not None:
        return data
    return replace(data, image_size=min(max(height_width(image_size)), LARGEST_SIDE))


@dataclass(frozen=True, kw_only=True)
class ClassificationDataConfig:
    """Images with one class each."""

    source: str = ""
    """Labelled images: a folder with SPLIT/CLASS/, hf-disk:DIR or hf:ORG/NAME."""
    train_split: str = "train"
    """Name of the split to train on."""
    test_split: str = "val"
    """Name of the split to evaluate on."""
    image_size: ImageSide = 224
    """Height and width in pixels of a crop."""
    image_column: str = "image"
    """For a Hugging Face data set: column of the images."""
    label_column: str = "label"
    """For a Hugging Face data set: column of the classes."""
    num_workers: Workers | None = None
    """Loader processes per training process. None: 1 on a CPU, up to 16 with a GPU."""
