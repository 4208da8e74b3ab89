"""Agreement with a teacher, without labels."""

import pytest
import torch

from pcd_hub.data.sources.open import open_source
from pcd_hub.errors import ConfigError, TeacherError
from pcd_hub.evaluate import LabelFreeReport
from pcd_hub.evaluate.label_free import agreement, random_subset
from tests.weights.making import exported


def test_a_headless_teacher_finds_all_its_own_locations(classes, tmp_path):
    """The one model that must score 100: the teacher's own backbone, if nothing follows it."""
    name = f"local-dir:{exported(tmp_path / 'export')}"
    report = LabelFreeReport(
        open_source(str(classes / "train")), dataset="drawn", teacher=name, image_size=64
    )
    metrics = report.score(name).metrics
    assert metrics["teacher's nearest pixel in top-5"] == (100.0,)
    assert metrics["CKA with teacher"] == (pytest.approx(100),)
    assert report.empty_table().images == 16
    assert "the 5 nearest by cosine among the pixels of 16 images" in report.protocol


def test_an_unknown_teacher_is_an_error_before_anything_is_computed(classes):
    images = open_source(str(classes / "train"))
    with pytest.raises(TeacherError, match="nowhere"):
        LabelFreeReport(images, dataset="drawn", teacher="nowhere")


def test_maps_are_compared_on_the_coarser_grid_and_need_k_other_locations():
    student, teacher = torch.randn(3, 5, 4, 4), torch.randn(3, 6, 2, 2)
    assert set(agreement(student, teacher, k=8)) == {
        "teacher's nearest pixel in top-8",
        "CKA with teacher",
        "effective rank",
    }
    with pytest.raises(ConfigError, match="retrieval-k 9: expected at most 8"):
        agreement(student, teacher, k=9)


def test_the_subset_is_the_same_every_time():
    assert random_subset(100, 7) == random_subset(100, 7)
    assert len(set(random_subset(100, 7))) == 7
    assert random_subset(3, 7) == [0, 1, 2]
