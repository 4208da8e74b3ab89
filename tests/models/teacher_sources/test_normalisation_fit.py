"""Whether images show that a teacher's normalisation is wrong."""

import dataclasses

import pytest
import timm
import torch
from timm.data.constants import IMAGENET_INCEPTION_MEAN as HALF
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pcd_hub.models.grid import pixel_grid
from pcd_hub.models.teacher_sources import normalisation_fit
from pcd_hub.models.teacher_sources.normalisation_fit import (
    normalisation_distance,
    normalisation_fit_warning,
    untrained_warning,
)
from pcd_hub.models.teachers import Teacher, TeacherFacts

FACTS = TeacherFacts(
    source="test",
    architecture="test_resnet",
    sha256="",
    head="none",
    license="mit",
    mean=HALF,
    std=HALF,
)


@pytest.fixture(scope="module")
def images():
    """Smooth random images, whose channels differ in mean and spread as those of photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(32, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (48, 48), mode="bicubic")
    return (0.45 + 0.25 * smooth).clamp(0, 1)


@pytest.fixture(scope="module")
def trained(images):
    """A network whose batch norms have seen the images with mean and std 0.5."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0).train()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the average over all batches
    with torch.no_grad():
        model((images - 0.5) / 0.5)
    return model.eval()


def teacher_of(model, mean, std):
    facts = dataclasses.replace(FACTS, mean=tuple(mean), std=tuple(std))
    return Teacher(pixel_grid(model, image_size=48), None, facts)


def test_the_right_normalisation_gives_no_warning(trained, images):
    assert normalisation_fit_warning(teacher_of(trained, HALF, HALF), images) == ""
    assert normalisation_fit_warning(teacher_of(trained, HALF, HALF), images / 4) == "", "dark"


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.0,) * 3, (1.0,) * 3),
        (HALF, (0.25,) * 3),
        (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ((0.0,) * 3, (1 / 255,) * 3),
    ],
)
def test_a_wrong_normalisation_is_named_with_the_better_one(trained, images, mean, std):
    warning = normalisation_fit_warning(teacher_of(trained, mean, std), images)
    assert warning.startswith(f"mean ({mean[0]:.4g}, ")
    assert "--teacher.mean 0.5 0.5 0.5 --teacher.std 0.5 0.5 0.5; try these" in warning


def test_images_that_no_normalisation_fits_give_no_warning(trained, monkeypatch):
    far = {HALF: 3.04, (0.0,) * 3: 2.59}  # measured: low light with noise, EfficientNet-Lite0
    monkeypatch.setattr(
        normalisation_fit, "normalisation_distance", lambda *given: far.get(given[2], 5.0)
    )
    teacher = teacher_of(trained, HALF, HALF)
    assert normalisation_fit_warning(teacher, torch.rand(2, 3, 48, 48)) == ""
    far[(0.0,) * 3] = 1.9
    assert "do not fit the teacher" in normalisation_fit_warning(teacher, torch.rand(2, 3, 48, 48))


def test_the_distance_is_that_of_normal_distributions():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3, eps=0)).eval()
    images = torch.rand(16, 3, 32, 32)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(images.mean((0, 2, 3)), images.std((0, 2, 3))),
        torch.distributions.Normal(0.0, 1.0),
    ).median()
    found = normalisation_distance(network, images, (0.0,) * 3, (1.0,) * 3)
    assert found == pytest.approx(expected.item(), rel=1e-3)


def test_a_network_without_batch_norms_shows_nothing(images):
    vit = timm.create_model("test_vit", num_classes=0, img_size=48).eval()
    assert normalisation_fit_warning(teacher_of(vit, HALF, HALF), images) == ""


def test_random_weights_are_named_by_their_batch_norms(trained):
    random = timm.create_model("test_resnet", num_classes=0).eval()
    warning = untrained_warning(teacher_of(random, HALF, HALF))
    assert "batch norms all have mean 0 and variance 1, as random weights do" in warning
    assert untrained_warning(teacher_of(trained, HALF, HALF)) == ""
    vit = timm.create_model("test_vit", num_classes=0, img_size=48).eval()
    assert untrained_warning(teacher_of(vit, HALF, HALF)) == "", "it has none"
