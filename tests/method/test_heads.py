import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pcd_hub.errors import TeacherError
from pcd_hub.method.heads import (
    STUDENT_HEADS,
    SpatialReLU,
    commutes_with_mean,
    spatial_mean_error,
    student_head,
    to_pixel_head,
)


def mlp(*widths: int, bias: bool = False, last_norm: str | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=bias), nn.BatchNorm1d(after), nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


LAYOUTS = {
    "mocov3_r50": mlp(64, 128, 32, last_norm="plain"),
    "mocov3_r50 without its last norm": mlp(64, 128, 32),
    "mocov3_vit_b": mlp(48, 128, 128, 32, last_norm="plain"),
    "byol_r50": mlp(64, 128, 32, bias=True),
    "swav_r50": mlp(64, 64, 16, bias=True),
    "barlow_twins_r50": mlp(64, 96, 96, 96),
    "nested": nn.Sequential(mlp(64, 32, 32), nn.Identity(), mlp(32, 16, 16, last_norm="affine")),
}


def calibrated(head: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """Set statistics and affine parameters away from the identity, and an eps that matters."""
    for layer in head.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.eps = 0.1
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.2, 2.0)
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return head.to(dtype).eval()


def features(head: nn.Sequential, dtype: torch.dtype) -> torch.Tensor:
    first = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
    return torch.randn(4, first.in_features, 7, 5, dtype=dtype).relu()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_pixel_head_commutes_with_the_spatial_mean(layout, dtype, bound):
    head = calibrated(LAYOUTS[layout], dtype)
    assert spatial_mean_error(head, to_pixel_head(head), features(head, dtype)) <= bound


def test_a_plain_relu_does_not_commute_with_the_spatial_mean():
    head = calibrated(LAYOUTS["mocov3_r50"], torch.float64)
    plain = to_pixel_head(head, adaptor="plain")
    assert commutes_with_mean(to_pixel_head(head))
    assert not commutes_with_mean(plain)
    assert spatial_mean_error(head, plain, features(head, torch.float64)) > 0.01


def test_a_plain_pixel_head_is_the_vector_head_at_each_location():
    head = calibrated(LAYOUTS["mocov3_vit_b"], torch.float64)
    maps = features(head, torch.float64)
    vectors = maps.movedim(1, -1).flatten(0, 2)
    expected = head(vectors).view(4, 7, 5, -1).movedim(-1, 1)
    torch.testing.assert_close(to_pixel_head(head, adaptor="plain")(maps), expected)


def test_batch_norm_in_train_mode_does_not_commute_with_the_spatial_mean():
    head = calibrated(LAYOUTS["mocov3_r50"], torch.float64)
    assert (
        spatial_mean_error(head, to_pixel_head(head).train(), features(head, torch.float64)) > 0.1
    )


def test_spatial_relu_is_relu_on_a_single_pixel():
    x = torch.randn(3, 5, 1, 1)
    assert torch.equal(SpatialReLU()(x), x.relu())


class _RecordSumDtypes(TorchDispatchMode):
    """Records the result dtypes of sums and means."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in {torch.ops.aten.sum.dim_IntList, torch.ops.aten.mean.dim}:
            self.dtypes.add(result.dtype)
        return result


@pytest.mark.parametrize(
    ("dtype", "row", "expected"),
    [
        # In half precision the sum of each row rounds to the same number, so the total is 0.
        (torch.float16, [2048.0, 1.0], torch.float32),
        (torch.bfloat16, [256.0, 1.0], torch.float32),
        # In float32 the total is 0.
        (torch.float64, [1.0, 2.0**-40], torch.float64),
    ],
)
def test_spatial_relu_sums_in_at_least_float32(dtype, row, expected):
    x = torch.tensor([row, [-row[0], 0.0]], dtype=dtype)[None, None]
    with _RecordSumDtypes() as record:
        assert torch.equal(SpatialReLU()(x), x), "the sum is small but positive"
        assert torch.equal(SpatialReLU()(-x), torch.zeros_like(x))
    assert record.dtypes == {expected}


def test_the_converted_head_is_a_copy():
    head = calibrated(mlp(8, 8, 4), torch.float32)
    pixel_head = to_pixel_head(head)
    before = pixel_head(torch.ones(1, 8, 2, 2))
    with torch.no_grad():
        head[0].weight.zero_()
    assert torch.equal(pixel_head(torch.ones(1, 8, 2, 2)), before)


class _CosineLinear(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.GELU(), "GELU"),
        (nn.LayerNorm(8), "LayerNorm"),
        (nn.BatchNorm1d(8, track_running_stats=False), "BatchNorm1d without running statistics"),
        (_CosineLinear(8, 8), "_CosineLinear"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "Parametrized"),
    ],
)
def test_layers_that_cannot_be_converted_exactly_are_rejected_by_name(layer, name):
    with pytest.raises(TeacherError, match=rf"head\.1 is {name}|head\.1 is .*{name}"):
        to_pixel_head(nn.Sequential(nn.Linear(8, 8), layer))


@pytest.mark.parametrize(
    ("layout", "millions", "biases"),
    [
        ("mocov3", 5.3, [False] * 4),
        ("byol", 5.3, [True, False] * 2),
        ("swav", 1.8, [True] * 4),
        ("barlow_twins", 340.0, [False] * 6),
    ],
)
def test_student_heads_have_the_sizes_of_the_released_code(layout, millions, biases):
    with torch.device("meta"):
        head = student_head(512, STUDENT_HEADS[layout])
    count = sum(parameter.numel() for parameter in head.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.03)
    convolutions = [layer for layer in head if isinstance(layer, nn.Conv2d)]
    assert [layer.bias is not None for layer in convolutions] == biases


def test_student_head_maps_feature_maps():
    head = student_head(16, STUDENT_HEADS["swav"])
    assert head(torch.randn(2, 16, 3, 4)).shape == (2, 128, 3, 4)
