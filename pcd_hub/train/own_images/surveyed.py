"""Survey the images of a run before its settings are derived, and keep the result."""

import logging

from accelerate import Accelerator

from pcd_hub.data.sources.open import ImageSource, ImageStream
from pcd_hub.data.survey.result import Survey
from pcd_hub.data.survey.survey import survey
from pcd_hub.evaluate.progress import progress
from pcd_hub.image_size import height_width
from pcd_hub.train.batches import check_batch_size, count_images
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.launch import on_main_process

log = logging.getLogger("pcd_hub")

_LONGEST, _SHORTEST, _SHARE = 60.0, 5.0, 0.02
"""Seconds of a survey: most, fewest, and as a share of the run's hours between them."""


def needs_survey(config: DistillConfig) -> bool:
    """Return whether the images are surveyed: for a new run with derived settings."""
    return config.derive and not config.run.resume


def survey_images(
    source: ImageSource | ImageStream,
    config: DistillConfig,
    given: frozenset[str],
    accelerator: Accelerator,
) -> Survey | None:
    """Survey the images of a new run whose settings are derived; None for any other.

    The main process reads them; call it on every process.

    Args:
        source: All images, the held-out ones included.
        config: The requested configuration.
        given: Fields that the user sets.
        accelerator: The run's Accelerator.

    Raises:
        ConfigError: If there are fewer images than one batch whose size the user sets.
        DataError: If the images cannot be trained on.
    """
    if not needs_survey(config):
        return None
    if "optim.global_batch_size" in given:
        check_batch_size(count_images(source), config.optim.global_batch_size)
    seconds = _LONGEST
    if config.run.hours is not None:
        seconds = min(_LONGEST, max(_SHORTEST, _SHARE * 3600 * config.run.hours))
    found = on_main_process(accelerator, lambda: survey(source, seconds=seconds, progress=progress))
    log.info("%s", found.describe())
    is_given = "data.image_size" in given
    view_side = max(height_width(config.data.image_size)) if is_given else None
    if accelerator.is_main_process:
        for caution in found.cautions(view_side=view_side):
            log.warning("%s", caution)
    return found
