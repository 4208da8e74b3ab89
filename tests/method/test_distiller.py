import pytest
import torch
from torch import nn

from pcd_hub.method.distiller import Distiller


class Square(nn.Module):
    """A head that does not commute with the mean."""

    def forward(self, feature_map):
        return feature_map**2


@pytest.mark.parametrize("pooled", [False, True])
def test_pooled_distillation_compares_means_taken_before_the_head(pooled):
    loss_arguments = []

    def loss(*arguments):
        loss_arguments.extend(arguments)
        return arguments[0].sum()

    images, teacher_map, negatives = (
        torch.randn(2, 3, 4, 4),
        torch.randn(2, 5, 2, 2),
        torch.ones(7, 5),
    )
    distiller = Distiller(nn.AvgPool2d(2), Square(), loss=loss, pooled=pooled)
    distiller(images, teacher_map, negatives)
    student, teacher, passed_negatives = loss_arguments
    if pooled:
        assert torch.allclose(student, images.mean((2, 3), keepdim=True) ** 2)
        assert torch.allclose(teacher, teacher_map.mean((2, 3), keepdim=True))
    else:
        assert torch.equal(student, nn.AvgPool2d(2)(images) ** 2)
        assert torch.equal(teacher, teacher_map)
    assert passed_negatives is negatives
    assert torch.equal(distiller.last_feature_maps[0], nn.AvgPool2d(2)(images))


class TwoMaps(nn.Module):
    def forward(self, images, num_maps=1):
        last = nn.functional.avg_pool2d(images, 4)
        return last if num_maps == 1 else (last, nn.functional.avg_pool2d(images, 2))


def test_finer_maps_are_compared_with_the_teacher_at_their_own_size():
    compared = []

    def loss(student, teacher, negatives):
        compared.append((student, teacher, negatives))
        return student.sum()

    images, target, negatives = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4), torch.ones(7, 5)
    distiller = Distiller(TwoMaps(), Square(), loss=loss, finer_heads=[nn.Identity()])
    value = distiller(images, target, negatives)
    last, finer = TwoMaps()(images, 2)
    (student, teacher, _), (finer_student, finer_teacher, given) = compared
    assert torch.equal(student, last**2)
    torch.testing.assert_close(teacher, nn.functional.avg_pool2d(target, 2))
    assert torch.equal(finer_student, finer)
    assert torch.equal(finer_teacher, target)
    assert given is negatives
    torch.testing.assert_close(value, ((last**2).sum() + finer.sum()) / 2)
    for found, expected in zip(distiller.last_feature_maps, (last, teacher), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(distiller.last_prediction, last**2)
