"""What the oldest supported versions cannot do."""

from importlib.metadata import version

import pytest
import timm
from packaging.version import Version

has_efficientvim = pytest.mark.skipif(
    not timm.is_model("efficientvim_m1"), reason="newer than this timm"
)
loads_headless_swin = pytest.mark.skipif(
    Version(version("timm")) < Version("1.0.31"),
    reason="timm up to 1.0.30 takes Swin without a classifier for another layout",
)
