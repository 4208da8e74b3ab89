import pytest
import torch
from torch import nn

from pcd_hub.evaluate.receptive_field import effective_receptive_field, side_of_half


def test_a_single_convolution_sees_its_kernel():
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    field = effective_receptive_field(convolution, torch.randn(2, 3, 9, 9))
    assert field.sum() == pytest.approx(1)
    seen = field > 0
    assert seen[3:6, 3:6].all()
    assert seen.sum() == 9


def test_gradients_of_opposite_sign_do_not_cancel():
    field = effective_receptive_field(lambda x: x[:, :1] - x[:, 1:2], torch.randn(2, 3, 5, 5))
    assert field[2, 2] == pytest.approx(1)


def test_a_global_mean_sees_everything_alike():
    field = effective_receptive_field(
        lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 5, 5), torch.randn(1, 3, 8, 8)
    )
    assert torch.allclose(field, torch.full((8, 8), 1 / 64))


def test_the_side_of_half():
    point = torch.zeros(21, 21)
    point[10, 10] = 1
    assert side_of_half(point) == pytest.approx(1 / 21)
    wide = torch.zeros(21, 21)
    wide[8:13, 8:13] = 1
    wide[10, 10] = 2
    assert side_of_half(wide) == pytest.approx(5 / 21), "10 of 26 within 3, all within 5"
    assert side_of_half(torch.ones(21, 21)) == pytest.approx(15 / 21), "15 x 15 of 21 x 21"
    bright = torch.ones(21, 21)
    bright[0, 0] = 20
    assert side_of_half(bright) == pytest.approx(17 / 21), "a bright corner is not the middle"
