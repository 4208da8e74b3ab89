"""Explain a teacher's name that does not exist."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import timm
from huggingface_hub import constants

from pcd_hub.errors import TeacherError, nearest


def unknown_teacher(source: str, known: Sequence[str]) -> TeacherError:
    """Return the error for a source of an unknown kind; a path or timm name lacks its scheme.

    Args:
        source: The source.
        known: The known kinds.
    """
    guess = nearest(source.partition(":")[0], known)
    if timm.is_model(source):
        guess = f"; did you mean 'timm:{source}'?"
    elif os.path.isdir(os.path.expanduser(source)):  # noqa: PTH111, PTH112 - names of any length
        guess = f"; did you mean 'local-dir:{source}'?"
    return TeacherError(f"unknown teacher '{source}'{guess}; expected one of {', '.join(known)}")


def remedy_for(error: BaseException) -> str:
    """Return the remedy for an error while a teacher of timm is loaded or downloaded."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES}:
            return (
                f"It is downloaded to {constants.HF_HUB_CACHE}: make room there, or set "
                "HF_HUB_CACHE to another folder"
            )
        cause = cause.__cause__ or cause.__context__
    return (
        "A teacher needs its pretrained weights: check the name and the network, "
        "or use a file (local-dir:DIR, LAYOUT:FILE)"
    )


def check_folder(folder: Path) -> None:
    """Check that the folder of a teacher exists.

    Raises:
        TeacherError: If it does not.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises if a name is too long
        raise TeacherError(
            f"no teacher folder {folder}; expected one that timm or transformers has saved"
        )


def check_timm_name(name: str) -> None:
    """Check that timm has this model, and a pretrained tag if the name has one.

    Raises:
        TeacherError: If it has not; the message suggests the nearest name.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise TeacherError(f"timm has no model '{name}'{nearest(architecture, timm.list_models())}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
        raise TeacherError(
            f"timm has no weights '{tag}' of {architecture}{nearest(tag, tags)}; expected one of "
            f"{', '.join(tags) or 'none'}"
        ) from error
