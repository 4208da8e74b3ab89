"""Drawn sets."""

import pytest

from tests.evaluate.drawn_sets import draw_classes, draw_segmentation


@pytest.fixture
def segmentation(tmp_path):
    return draw_segmentation(tmp_path)


@pytest.fixture
def classes(tmp_path):
    return draw_classes(tmp_path)
