import copy
import logging

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from pcd_hub.models.folding import fold_batch_norms
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_loading import load_teacher


def lively(network: nn.Module) -> nn.Module:
    """In eval mode, with statistics and weights that a fold must not lose."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.3, 2)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0, 0.3)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("arch", "left"),
    [
        ("resnet18", 0),
        ("mobilenetv3_small_050", 0),  # BatchNormAct2d: the activation stays
        ("regnetx_002", 0),
        ("ghostnet_050", 0),
        ("resnetv2_18", 9),  # pre-activation: the first norm of a block follows a sum
        ("convnext_atto", 0),  # has none
    ],
)
def test_a_folded_network_computes_the_same_without_its_norms(arch, left):
    network = lively(timm.create_model(arch, num_classes=0))
    images = torch.rand(2, 3, 64, 64)
    expected, had = network(images), norms(network)
    assert fold_batch_norms(network, images) == had - left
    assert norms(network) == left
    error = (network(images) - expected).norm() / expected.norm()
    assert error < 1e-5
    fresh = torch.rand(3, 3, 96, 96)
    assert network(fresh).shape == (3, expected.shape[1])


def test_activation_inside_a_norm_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4))
    lively(network)
    images = torch.randn(2, 3, 5, 5)
    expected = network(images)
    fold_batch_norms(network, images)
    torch.testing.assert_close(network(images), expected)
    assert network(images).min() == 0, "the ReLU is still there"


class _Shared(nn.Module):
    """One norm behind two convolutions, and a convolution that is called twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.after = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norm(self.one(x)) + self.norm(self.two(x))
        return self.after(self.twice(self.twice(x)))


def test_what_is_called_twice_is_left_alone():
    network = lively(_Shared())
    images = torch.randn(2, 3, 5, 5)
    expected = network(images)
    assert fold_batch_norms(network, images) == 0
    assert torch.equal(network(images), expected)


def test_a_convolution_that_standardises_its_weights_is_left_alone():
    network = lively(timm.create_model("resnetv2_50x1_bit", num_classes=0))
    assert fold_batch_norms(network, torch.rand(1, 3, 64, 64)) == 0


def pixel_teacher(folder):
    head = lively(
        nn.Sequential(
            nn.Linear(96, 64, bias=False),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Linear(64, 16, bias=False),
            nn.BatchNorm1d(16, affine=False),
        )
    )
    backbone = lively(timm.create_model("test_resnet", num_classes=0))
    save_teacher(folder, backbone.state_dict(), head, {"architecture": "test_resnet"})
    return load_teacher(f"local-dir:{folder}", image_size=64), head


def test_a_folded_teacher_gives_the_same_pixels_and_keeps_the_law(tmp_path):
    teacher, vector_head = pixel_teacher(tmp_path)
    images = torch.rand(4, 3, 64, 64)
    expected, facts = teacher(images), teacher.facts
    teacher.fold_batch_norms(64)
    assert norms(teacher) == 0
    assert teacher.facts is facts
    pixels = teacher(images)
    assert (pixels - expected).norm() / expected.norm() < 1e-5
    maps = teacher.grid((images - teacher.mean) / teacher.std)
    torch.testing.assert_close(
        pixels.mean((2, 3)), vector_head(maps.mean((2, 3))), rtol=1e-4, atol=1e-4
    )


class _ReadsBetween(nn.Module):
    """Something else reads what the norm is given, at one pixel or all: folding would change it."""

    def __init__(self, model, *, everywhere):
        super().__init__()
        self.everywhere = everywhere
        self.model, self.conv, self.norm = model, nn.Conv2d(96, 96, 1), nn.BatchNorm2d(96)
        self.num_channels = 96

    def forward(self, x):
        between = self.conv(self.model(x))
        read = between.clone()
        if not self.everywhere:
            read[:, :, 1:] = read[:, :, :, 1:] = 0
            read = 0.5 * read
        return self.norm(between) + read


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_teacher_that_cannot_be_folded_stays_as_it_is_and_says_so(tmp_path, caplog, everywhere):
    teacher, _ = pixel_teacher(tmp_path)
    teacher.grid = lively(_ReadsBetween(copy.deepcopy(teacher.grid), everywhere=everywhere))
    images = torch.rand(2, 3, 64, 64)
    expected, had = teacher(images), norms(teacher)
    with caplog.at_level(logging.WARNING, logger="pcd_hub"):
        teacher.fold_batch_norms(256)
    assert "batch norms of the teacher are not folded" in caplog.text
    assert norms(teacher) == had
    assert torch.equal(teacher(images), expected)
