"""Drawn sets, and the tiny teacher of the training tests."""

import pytest

from tests.evaluate.drawn_sets import draw_classes, draw_segmentation
from tests.train.conftest import tiny_teacher  # noqa: F401


@pytest.fixture
def segmentation(tmp_path):
    return draw_segmentation(tmp_path)


@pytest.fixture
def classes(tmp_path):
    return draw_classes(tmp_path)
