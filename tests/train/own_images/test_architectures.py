"""What an architecture tells before a student of it is built."""

import pytest

from pcd_hub.train.own_images.architectures import has_finer_map


@pytest.mark.parametrize(
    ("architecture", "is_finer"),
    [
        *(("resnet18", True), ("mobilenetv4_conv_small", True), ("convnext_atto", True)),
        *(("resnet18_mhsa", True), ("test_vit", False), ("vit_tiny_patch16_224", False)),
        ("no_such_architecture", False),
    ],
)
def test_cnns_have_a_map_that_is_finer_than_the_last_one(architecture, is_finer):
    assert has_finer_map(architecture) is is_finer
