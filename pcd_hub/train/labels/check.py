"""Print a survey of labelled images, or warn of its findings before training."""

import logging
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from pcd_hub.data.labelled.survey import LabelSurvey
from pcd_hub.train.launch import finish, on_main_process

log = logging.getLogger("pcd_hub")


def print_survey(accelerator: Accelerator, survey: Callable[[], LabelSurvey]) -> dict[str, Any]:
    """Print a survey's table on the main process, and return the survey as JSON's types."""
    found = on_main_process(accelerator, survey)
    if accelerator.is_main_process:
        print(found.table())
    finish(accelerator)
    return found.as_json()


def warn_of_labels(accelerator: Accelerator, survey: Callable[[], LabelSurvey]) -> None:
    """Log one line for each likely mistake that a survey finds."""
    log_warnings(on_main_process(accelerator, survey))


def log_warnings(survey: LabelSurvey) -> None:
    """Log one line for each likely mistake that a survey found."""
    for line in survey.warnings():
        log.warning("%s", line)
