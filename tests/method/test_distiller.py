"""What is compared with what: pixel by pixel, or one vector an image."""

import pytest
import torch
from torch import nn

from pcd_hub.method.distiller import Distiller


class Square(nn.Module):
    """A head that does not commute with the mean."""

    def forward(self, pixels):
        return pixels**2


@pytest.mark.parametrize("pooled", [False, True])
def test_pooled_vectors_are_means_before_the_head(pooled):
    seen = []

    def loss(*arguments):
        seen.extend(arguments)
        return arguments[0].sum()

    images, theirs, negatives = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2), torch.ones(7, 5)
    distiller = Distiller(nn.AvgPool2d(2), Square(), loss=loss, pooled=pooled)
    distiller(images, theirs, negatives)
    student, teacher, contrast = seen
    if pooled:
        assert torch.allclose(student, images.mean((2, 3), keepdim=True) ** 2)
        assert torch.allclose(teacher, theirs.mean((2, 3), keepdim=True))
    else:
        assert torch.equal(student, nn.AvgPool2d(2)(images) ** 2)
        assert torch.equal(teacher, theirs)
    assert contrast is negatives
    assert torch.equal(distiller.last_pixels[0], nn.AvgPool2d(2)(images))
