"""Survey the images of a run before its first step; the result is ``survey.json`` of its folder."""

import json
import logging

import numpy as np

from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.data.survey.result import Survey
from pcd_hub.data.survey.survey import survey
from pcd_hub.files.write import atomic_write
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.run_folder.folder import RunFolder, existing_run

log = logging.getLogger("pcd_hub")

FILE = "survey.json"
MAX_SECONDS = 60.0
MAX_SHARE = 0.02
"""Largest share of ``--run.hours`` for the survey."""


def survey_images(
    source: ImageSource | ImageStream,
    config: DistillConfig,
    *,
    default_name: str,
    given: frozenset[str],
) -> Survey | None:
    """Survey the images of a new run and log the result; return that of a run that is resumed.

    Args:
        source: All images, also the held-out ones.
        config: The requested configuration.
        default_name: Name of the run's folder below ``runs``, if none is configured.
        given: Fields that the user sets, as ``group.field``.

    Raises:
        DataError: If the images cannot be trained on.
        ConfigError: If there is no run to resume.
    """
    if config.run.resume:
        try:
            text = (existing_run(config, default_name) / FILE).read_text()
            return Survey.from_json(json.loads(text))
        except (OSError, ValueError, TypeError, LookupError):  # an older run, or a damaged file
            return None
    hours = config.run.hours
    seconds = MAX_SECONDS if hours is None else min(MAX_SECONDS, MAX_SHARE * hours * 3600)
    found = survey(source, seconds=seconds)
    log.info("images: %s", found.describe())
    follows = config.derive and "data.image_size" not in given
    view_side = None if follows else int(np.max(config.data.image_size))
    for caution in found.cautions(view_side=view_side):
        log.warning("%s", caution)
    return found


def write_survey(folder: RunFolder, found: Survey) -> None:
    """Write a survey to a run's folder.

    Raises:
        CheckpointError: If it cannot be written.
    """
    with folder.writing(folder.path / FILE):
        atomic_write(folder.path / FILE, json.dumps(found.as_json(), indent=2) + "\n")
