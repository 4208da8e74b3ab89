"""What the oldest supported versions cannot do."""

from importlib.metadata import version

import pytest
import timm
from packaging.version import Version

TIMM = Version(version("timm"))

has_efficientvim = pytest.mark.skipif(
    not timm.is_model("efficientvim_m1"), reason="newer than this timm"
)
loads_headless_swin = pytest.mark.skipif(
    Version("1.0.31") > TIMM,
    reason="timm up to 1.0.30 takes Swin without a classifier for another layout",
)
reads_safetensors_by_local_dir = pytest.mark.skipif(
    Version("1.0.26") > TIMM, reason="timm reads safetensors by local-dir: from 1.0.26 on"
)
