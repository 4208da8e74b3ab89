"""Check that the splits of a labelled set have the same classes."""

from pcd_hub.data.labelled.classification import ClassificationSet
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.errors import DataError


def check_same_classes(
    train: SegmentationSet | ClassificationSet, test: SegmentationSet | ClassificationSet
) -> None:
    """Check that both splits have the same classes in the same order.

    Raises:
        DataError: If they differ.
    """
    if train.classes != test.classes:
        odd = min(set(train.classes) ^ set(test.classes), default=train.classes[0])
        raise DataError(
            f"{train.name} and {test.name} differ in class '{odd}' or in the order of classes; "
            "expected the same classes in both"
        )
