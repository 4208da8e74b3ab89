"""Refuse test images that are among the images of a distillation."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pcd_hub.data.decoding import as_rgb, decode
from pcd_hub.data.labelled.coco import CocoSplit
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.data.sources.open import ImageSource, ImageStream, open_source
from pcd_hub.data.sources.remote import is_remote
from pcd_hub.data.sources.uris import local_path
from pcd_hub.data.survey.shared import LabelledPicture, SharedImages, find_shared, pictures_of
from pcd_hub.errors import DataError, PCDHubError
from pcd_hub.evaluate.models import is_pcd_weight
from pcd_hub.evaluate.progress import progress
from pcd_hub.files.write import atomic_write
from pcd_hub.weights.catalogue import find, record_of
from pcd_hub.weights.record import WeightRecord

log = logging.getLogger("pcd_hub")

FILE = "shared_images.json"
_ON_HUB = ("hf:", "hf-stream:")


def weight_folder(name: str) -> Path | None:
    """Return the folder of a pcd_hub weight on this machine; None for any other model."""
    if not is_pcd_weight(name):
        return None
    if name.startswith("local-dir:"):
        return local_path(name.removeprefix("local-dir:"))
    return find(name)


def records(models: Mapping[str, str]) -> dict[str, WeightRecord | None]:
    """Return the record of each distilled model by its label; None if it is not on this machine."""
    found = {}
    for label, name in models.items():
        if is_pcd_weight(name):
            folder = weight_folder(name)
            found[label] = WeightRecord.from_dict(record_of(folder)) if folder else None
    return found


def check_not_distilled_on(
    test: SegmentationSet | CocoSplit,
    models: Mapping[str, str],
    given: Sequence[str],
    folder: Path,
) -> list[str]:
    """Look for the test images among the images of the distillations.

    Args:
        test: The split that is scored.
        models: Names of the models, by label.
        given: Sources to look in, instead of those that the records of the models name.
        folder: Folder that keeps the result, so that the same check is not repeated.

    Returns:
        One sentence for each source: what was compared, or why it was not.

    Raises:
        DataError: If a test image is among them, or a given source cannot be opened.
    """
    if given:
        return [_check(test, source, open_source(source), folder) for source in given]
    sentences = []
    for label, record in records(models).items():
        if record is None or not record.sources:
            sentences.append(_unchecked(label, "its images are not recorded on this machine"))
            continue
        for source in record.sources:
            if source.startswith("scenes:"):
                sentences.append(f"{label} was distilled on generated scenes")
            elif is_remote(source) or source.startswith(_ON_HUB):
                sentences.append(_unchecked(label, f"{source} is not read for this"))
            else:
                sentences.append(_check_recorded(test, label, record, source, folder))
    return sentences


def _check_recorded(
    test: SegmentationSet | CocoSplit,
    label: str,
    record: WeightRecord,
    source: str,
    folder: Path,
) -> str:
    try:
        images = open_source(source)
    except PCDHubError:
        return _unchecked(label, f"{source} is not on this machine")
    # A shared record has only the last part of a path, which may name another folder here.
    known = str(record.data.get("fingerprint", ""))
    if len(record.sources) == 1 and not known.startswith(images.fingerprint()):
        return _unchecked(
            label, f"{source} here is not the set of images that its record describes"
        )
    return _check(test, source, images, folder)


def _unchecked(label: str, why: str) -> str:
    return (
        f"not checked whether {label} was distilled on test images: {why}; name the images with "
        "--distilled-on"
    )


def _check(
    test: SegmentationSet | CocoSplit,
    source: str,
    images: ImageSource | ImageStream,
    folder: Path,
) -> str:
    if isinstance(images, ImageStream):
        return f"not checked whether test images are in {source}: it can only be streamed"
    pictures = _pictures(test)
    key = f"{test.fingerprint()}; {source}: {images.fingerprint()}"
    kept = _read(folder / FILE)
    if key not in kept:
        log.info("look for %d test images among %d in %s", len(pictures), len(images), source)
        kept[key] = _as_json(find_shared(pictures, images, progress=progress))
        atomic_write(folder / FILE, json.dumps(kept, indent=2) + "\n")
    equal, near = kept[key]["equal"], kept[key]["near"]
    if equal:
        raise DataError(
            f"{len(equal)} of {len(pictures)} test images are among the images of the distillation "
            f"{source}, the first is {equal[0][0]} ({equal[0][1]}), expected none; remove them "
            f"from the test split, or distil without them ({folder / FILE} lists all)"
        )
    found = f"none of {len(pictures)} test images is among the {len(images)} of {source}"
    if near:
        found += f", but {len(near)} have a near copy there, such as {near[0][0]} ({near[0][1]})"
    return found


def _pictures(test: SegmentationSet | CocoSplit) -> list[LabelledPicture]:
    if isinstance(test, SegmentationSet):
        return pictures_of(test)
    return [
        LabelledPicture(
            name=str(image.path), load=partial(decode, image.path, str(image.path), as_rgb)
        )
        for image in test.images
    ]


def _as_json(found: SharedImages) -> dict[str, list[list[str]]]:
    return {"equal": list(map(list, found.equal)), "near": list(map(list, found.near))}


def _read(file: Path) -> dict[str, dict[str, list[list[str]]]]:
    """Return earlier results; none if the file is missing or damaged."""
    try:
        kept = json.loads(file.read_text())
        return {key: {kind: kept[key][kind] for kind in ("equal", "near")} for key in kept}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
