"""Open classification data sets by URI.

==========================  ====================================================================
``DIR``                     ``SPLIT/CLASS/``, images at any depth below
``hf-disk:DIR``             a Hugging Face dataset saved by ``save_to_disk``, with its splits
``hf:ORG/NAME``             a Hugging Face dataset, downloaded first, or a local folder
==========================  ====================================================================
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pcd_hub.data.decoding import ResultT
from pcd_hub.data.labelled.formats.pairs import find_split_folder
from pcd_hub.data.sources.files import ImageFiles, list_subfolders
from pcd_hub.data.sources.hf_datasets import HFImages, load_split
from pcd_hub.data.sources.open import ImageSource
from pcd_hub.data.sources.uris import local_path, split_uri
from pcd_hub.errors import DataError

_INSTEAD = (
    "for masks use images/SPLIT, masks/SPLIT and classes.json; for outlines of objects "
    "--data.format coco, yolo, voc, labelme or cvat; boxes are for recipes/detect.py"
)
_NO_CLASSES = {
    *("images", "imgs", "img", "image", "jpegimages", "masks", "mask", "gt", "groundtruth"),
    *("labels", "label", "annotations", "annotation", "segmentationclass", "segmentationobject"),
}
"""Names of folders beside which no class is expected."""


class ClassificationSet:
    """One split of a classification data set.

    Args:
        images: Source of the images.
        labels: Class index of every image.
        classes: Name of every class.
        name: Name of the data set and split in results.
        labels_note: Text appended to the fingerprint, if the names of the images lack the labels.
    """

    def __init__(
        self,
        images: ImageSource,
        labels: list[int],
        *,
        classes: tuple[str, ...],
        name: str,
        labels_note: str = "",
    ) -> None:
        self._images = images
        self.labels = labels
        self.classes = classes
        self.name = name
        self._labels_note = labels_note

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        """Decode image ``index`` to upright RGB; raises ``BrokenImageError`` if it fails."""
        return self._images[index]

    def read(self, index: int, to_image: Callable[[Image.Image], ResultT]) -> ResultT:
        """Apply ``to_image`` to image ``index``; see ``ImageSource.read``."""
        return self._images.read(index, to_image)

    def path(self, index: int) -> Path | None:
        """Return the file of image ``index``; None if it is in a table."""
        return self._images.path(index) if isinstance(self._images, ImageFiles) else None

    def fingerprint(self) -> str:
        """Return a short text that changes when the images or their labels change."""
        return self._images.fingerprint() + self._labels_note


def open_classification(
    uri: str, split: str, *, image_column: str = "image", label_column: str = "label"
) -> ClassificationSet:
    """Open one split of the data set that ``uri`` names (see the table at the top of this file).

    Raises:
        DataError: If the data set or split does not exist, or has fewer than two classes.
    """
    scheme, _ = split_uri(uri, ("hf-disk", "hf"))
    if scheme:
        return _from_rows(uri, split, image_column, label_column)
    return _from_folder(local_path(uri), split)


def _from_folder(folder: Path, split: str) -> ClassificationSet:
    parent = find_split_folder(folder, split)
    classes = tuple(list_subfolders(parent))
    if len(classes) < 2:
        raise DataError(
            f"{parent} has {len(classes)} class folders: expected at least 2, as SPLIT/CLASS/"
        )
    if {name.lower() for name in classes} <= _NO_CLASSES:
        raise DataError(
            f"{parent} has the folders {', '.join(classes)}, which are not classes; {_INSTEAD}"
        )
    images = ImageFiles.from_folder(parent)
    class_index = {name: index for index, name in enumerate(classes)}
    labels = [class_index.get(path.partition("/")[0], -1) for path in images.paths()]
    if -1 in labels:
        stray = parent / images.paths()[labels.index(-1)]
        raise DataError(f"{stray} is not in a class folder; move or remove it")
    return ClassificationSet(
        images, labels, classes=classes, name=f"{folder.resolve().name}/{split}"
    )


def _from_rows(uri: str, split: str, image_column: str, label_column: str) -> ClassificationSet:
    columns = {"--data.image-column": image_column, "--data.label-column": label_column}
    dataset = load_split(uri, split, columns=columns)
    labels = np.asarray(dataset[label_column])
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or not len(labels) or labels.min() < 0:
        raise DataError(
            f"{uri}, {split}: expected class indices >= 0 in column '{label_column}'; set "
            "--data.label-column"
        )
    count = int(labels.max()) + 1
    names = getattr(dataset.features[label_column], "names", None) or map(str, range(count))
    return ClassificationSet(
        HFImages(dataset.select_columns([image_column]), uri=uri),
        labels.tolist(),
        classes=tuple(names),
        name=f"{Path(uri.partition(':')[2]).name} {split}",
        labels_note=f", column {label_column} of {count} classes",
    )
