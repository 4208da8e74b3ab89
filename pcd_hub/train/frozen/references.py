"""Published backbones that a probe may add to its table."""

import sys
from collections.abc import Mapping, Sequence

from pcd_hub.errors import PCDHubError, first_line
from pcd_hub.evaluate.models import open_model
from pcd_hub.models.timm_loading import cache_alone_if_unreachable

REFERENCES = (
    "resnet18.a1_in1k",
    "resnet18.fb_ssl_yfcc100m_ft_in1k",
    "convnext_tiny.dinov3_lvd1689m",
)
"""Supervised, semi-supervised and distilled without labels, by their names in timm."""


def reachable_references(
    models: Sequence[str], *, image_size: int
) -> tuple[list[str], dict[str, str]]:
    """Download the references and load them once, and print which ones cannot be used.

    Args:
        models: Models that are evaluated anyway.
        image_size: Height and width of the images in pixels.

    Returns:
        The references that load, and the reasons of the others by name.
    """
    reachable: list[str] = []
    left_out: dict[str, str] = {}
    with cache_alone_if_unreachable(REFERENCES[0]) as unreachable:  # ask once, not for each
        for name in REFERENCES:
            if name in models:
                continue
            try:
                open_model(name, image_size=image_size)
            except PCDHubError as error:
                left_out[name] = unreachable or first_line(error.__cause__ or error)[:200]
            else:
                reachable.append(name)
    if left_out:
        print(f"references left out: {_in_words(left_out)}", file=sys.stderr)
    return reachable, left_out


def _in_words(reasons: Mapping[str, str]) -> str:
    """Return the names by reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(same)} ({reason})" for reason, same in names.items())
