"""The exceptions a user may meet.

::

    PCDHubError(ValueError)  a mistake that a user can mend
    |-- TeacherError         a teacher that cannot load whole, or whose head cannot work on pixels
    |-- StudentError         a student without a spatial grid, or an image size it cannot take
    |-- DataError            images that are missing, unreadable, or too many of them broken
    |-- ConfigError          a recipe's settings contradict each other or the machine
    |-- CheckpointError      a checkpoint that is damaged or belongs to another run
    |-- WeightError          a weight that is missing, damaged, or not the one that was meant
    `-- HubError             the Hub refuses: no right, a malformed token, a repository changed
        |-- HubNotFoundError     no such repository, as far as this token can see
        `-- HubUnreachableError  nobody answers, or HF_HUB_OFFLINE is set

Each message says what is wrong, the bound, and the remedy.
"""

import difflib
from collections.abc import Iterable


class PCDHubError(ValueError):
    """Base of every error that pcd_hub raises for a mistake of its caller."""


class TeacherError(PCDHubError):
    """A teacher that cannot be loaded whole, or whose head cannot work on pixels."""


class StudentError(PCDHubError):
    """A student without a spatial grid, or an image size it cannot take."""


class DataError(PCDHubError):
    """Images that are missing, unreadable, or too many of them broken."""


class ConfigError(PCDHubError):
    """A recipe's settings contradict each other or the machine."""


class CheckpointError(PCDHubError):
    """A training checkpoint that is damaged or belongs to another run."""


class WeightError(PCDHubError):
    """A weight that is missing, damaged, or not the one that was meant."""


class HubError(PCDHubError):
    """The Hub refuses: no right, a malformed token or endpoint, a repository that changed."""


class HubNotFoundError(HubError):
    """There is no such repository, as far as this token can see."""


class HubUnreachableError(HubError):
    """The Hub does not answer, or ``HF_HUB_OFFLINE`` is set."""


def first_line(error: BaseException) -> str:
    """What an error says, without the rest; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""
