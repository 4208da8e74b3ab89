"""A matched teacher that takes images of two sizes."""

import pytest
import timm
import torch
from torch import nn

from pcd_hub.errors import TeacherError
from pcd_hub.method.heads import to_pixel_head
from pcd_hub.models.grid import pixel_grid
from pcd_hub.models.teacher_sources.matching import match_other_size, match_teacher
from pcd_hub.models.teacher_sources.module import teacher_from_module
from pcd_hub.models.teachers import Teacher, TeacherFacts


def teacher_of(architecture: str, size: int | None = None) -> Teacher:
    torch.manual_seed(0)
    arguments = {} if size is None else {"img_size": size, "dynamic_img_size": False}
    model = timm.create_model(architecture, num_classes=0, **arguments).eval()
    grid = pixel_grid(model, image_size=size or 64)
    head = to_pixel_head(nn.Sequential(nn.Linear(grid.num_channels, 8)))
    facts = TeacherFacts(
        source=architecture,
        architecture=architecture,
        sha256="",
        head="linear",
        license="mit",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    return Teacher(grid, head, facts)


STUDENT = pixel_grid(timm.create_model("test_resnet", num_classes=0), image_size=64)


def matched(teacher: Teacher, size, other, teacher_size=None) -> Teacher:
    match_teacher(teacher, STUDENT, image_size=size, teacher_image_size=teacher_size)
    match_other_size(teacher, STUDENT, image_size=size, other_size=other)
    return teacher


@pytest.mark.parametrize(
    ("size", "other", "teacher_size", "expected"),
    [
        (96, 64, None, 64),
        (96, 64, 128, 96),  # 4 x 4 cells of 32 px: 2.7 of them
        (96, 64, 192, 128),
        (96, 80, 128, 96),
        (96, 64, 148, 99),  # no whole stride: in proportion
        ((96, 192), (64, 96), 128, (96, 128)),  # of 128 x 256: 2.7 x 4
        ((96, 192), 64, 128, 96),
    ],
)
def test_the_input_of_the_other_size_is_in_proportion(size, other, teacher_size, expected):
    teacher = matched(teacher_of("test_resnet"), size, other, teacher_size)
    for one, wanted in ((size, None), (other, expected)):
        height, width = (one, one) if isinstance(one, int) else one
        images = torch.rand(2, 3, height, width)
        assert teacher(images).shape[2:] == STUDENT(images).shape[2:]
        if wanted is not None:
            key = f"{height}x{width}"
            assert (teacher.other_sizes[key].input_size or one) == wanted


def test_the_other_size_does_not_change_the_first():
    images, small = torch.rand(2, 3, 96, 96), torch.rand(2, 3, 64, 64)
    alone = teacher_of("test_resnet")
    match_teacher(alone, STUDENT, image_size=96, teacher_image_size=128)
    both = matched(teacher_of("test_resnet"), 96, 64, 128)
    assert torch.equal(alone(images), both(images))
    match_teacher(alone, STUDENT, image_size=64, teacher_image_size=96)
    assert torch.equal(alone(small), both(small))
    match_teacher(both, STUDENT, image_size=64)
    assert not both.other_sizes, "matched anew"


@pytest.mark.parametrize("bands_first", [True, False])
def test_both_sizes_get_the_same_bands_and_precision(bands_first):
    teacher = teacher_of("test_resnet")
    match_teacher(teacher, STUDENT, image_size=96, teacher_image_size=128)
    if bands_first:
        teacher.set_bands((3, 1, 0))
    match_other_size(teacher, STUDENT, image_size=96, other_size=64)
    if not bands_first:
        teacher.set_bands((3, 1, 0))
    images = torch.rand(2, 4, 64, 64)
    rgb = matched(teacher_of("test_resnet"), 96, 64, 128)
    assert torch.equal(teacher(images), rgb(images[:, [3, 1, 0]]))
    assert {parameter.dtype for parameter in teacher.double().parameters()} == {torch.float64}
    assert teacher(images.double()).dtype == torch.float64


def test_a_vit_of_one_size_is_resized_and_shares_its_weights():
    teacher = teacher_of("test_vit", 96)
    before = {name: value.clone() for name, value in teacher.grid.state_dict().items()}
    images = torch.rand(2, 3, 96, 96)
    expected = teacher(images)
    matched(teacher, 96, 64)
    other = teacher.other_sizes["64x64"]
    own = dict(other.grid.named_parameters())
    copied = [name for name, one in teacher.grid.named_parameters() if own[name] is not one]
    assert copied == ["model.pos_embed"]
    assert teacher(torch.rand(2, 3, 64, 64)).shape == (2, 8, 2, 2)
    for name, value in teacher.grid.state_dict().items():
        assert torch.equal(value, before[name])
    match_teacher(teacher, STUDENT, image_size=96)
    assert torch.allclose(teacher.resample(expected), teacher(images))


class EightPixels(nn.Module):
    """A module for images of 8 x 8 tokens."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)

    def forward(self, images):
        maps = self.patches(images)
        if maps.shape[2] != 8:
            raise ValueError("64 px only")
        return maps


def test_a_teacher_that_takes_one_size_alone_is_rejected():
    teacher = teacher_from_module(EightPixels(), image_size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    match_teacher(teacher, STUDENT, image_size=64)
    with pytest.raises(TeacherError, match=r"cannot take images of 32 px \(.*64 px only.*early-im"):
        match_other_size(teacher, STUDENT, image_size=64, other_size=32)
