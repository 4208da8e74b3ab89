"""Exceptions for mistakes that a user can correct.

::

    PCDHubError(ValueError)
    |-- TeacherError
    |-- StudentError
    |-- DataError
    |-- ConfigError
    |-- CheckpointError
    |-- WeightError
    `-- HubError
        |-- HubNotFoundError
        `-- HubUnreachableError

Each message names what was found, what was expected, and the remedy.
"""

import difflib
from collections.abc import Iterable


class PCDHubError(ValueError):
    """Base class of the errors that pcd_hub raises for a user's mistake."""


class TeacherError(PCDHubError):
    """A teacher does not load completely, or its head cannot be applied to feature maps."""


class StudentError(PCDHubError):
    """A student has no spatial feature map, or does not accept the image size."""


class DataError(PCDHubError):
    """Images or annotations are missing, unreadable or inconsistent."""


class ConfigError(PCDHubError):
    """Settings contradict each other or do not fit the machine."""


class CheckpointError(PCDHubError):
    """A training checkpoint is damaged or belongs to another run."""


class WeightError(PCDHubError):
    """A weight is missing, damaged, or not the expected one."""


class MissingWeightError(WeightError):
    """A weight is not on this machine."""


class HubError(PCDHubError):
    """A Hub request fails: no permission, a malformed token or endpoint, a changed repository."""


class HubNotFoundError(HubError):
    """The repository does not exist, or the token has no access to it."""


class HubUnreachableError(HubError):
    """The Hub does not respond, or ``HF_HUB_OFFLINE`` is set."""


def exit_code(error: PCDHubError | OSError) -> int:
    """Return a command's exit code for an error: 2 for its options and settings, otherwise 1."""
    return 2 if isinstance(error, ConfigError) else 1


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the error's type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def pip_install(extra: str = "", *, options: str = "") -> str:
    """Return how pcd_hub is installed with an extra: from its clone, as no release is published.

    Args:
        extra: The extra; none if not given.
        options: Options of pip, with a space at the end.
    """
    return f'pip install {options}".{f"[{extra}]" if extra else ""}" in the clone of pcd_hub'


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or an empty string.

    Args:
        name: The unknown name.
        known: The known names.
        cutoff: Least similarity, from 0 to 1.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def one_line(error: PCDHubError | OSError) -> str:
    """Return the message of an error; for an OSError, the file's name and the reason.

    Raises:
        OSError: ``error`` itself, if it names no file.
    """
    if isinstance(error, PCDHubError):
        return str(error)
    if error.filename is None:
        raise error
    name = str(error.filename)
    return f"{name if name.isprintable() else ascii(name)}: {error.strerror or error}"
