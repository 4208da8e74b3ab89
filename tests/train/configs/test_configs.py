"""What a named configuration is said to hold, with the source of each value."""

import dataclasses

import pytest

from pcd_hub.data.view_policy import ViewPolicy
from pcd_hub.train.configs.contrast import CONTRAST
from pcd_hub.train.configs.distill import DISTILL

# github.com/facebookresearch/moco-v3, CONFIG.md, ResNet-50 (LARS; 10 epochs of warm-up).
MOCO_V3 = [
    # epochs, lr for 256 images, weight decay, momentum of the encoder, share of warm-up
    ("mocov3_r50", 100, 0.6, 1e-6, 0.99, 0.1),
    ("mocov3_r50_1000ep", 1000, 0.3, 1.5e-6, 0.996, 0.01),
]


@pytest.mark.parametrize(("name", "epochs", "lr", "decay", "momentum", "warmup"), MOCO_V3)
def test_moco_v3_has_the_values_of_its_number_of_epochs(name, epochs, lr, decay, momentum, warmup):
    config = CONTRAST[name]
    optim, method, data = config.optim, config.method, config.data
    assert (optim.epochs, optim.lr_per_256, optim.weight_decay) == (epochs, lr, decay)
    assert (method.momentum, optim.warmup_share, optim.name) == (momentum, warmup, "lars")
    assert (method.loss, method.temperature, method.head_width, method.dim) == (
        *("mocov3", 1.0, 4096, 256),
    )
    assert (config.encoder.arch, data.image_size, data.min_crop_area) == ("resnet50", 224, 0.2)


def test_pcd_has_the_settings_of_the_released_code():
    """github.com/allo-rene/pcd at 6b0ad4d: main_pcd.py:26-63, data_augmentation.py:54-81."""
    config = DISTILL["pcd_r18_released"]
    optim, data, method = config.optim, config.data, config.method
    assert (optim.name, optim.lr_per_256, optim.weight_decay) == ("lars", 1.0, 1e-5)
    assert (optim.global_batch_size, optim.epochs, optim.warmup_share) == (1024, 100, 0.1)
    assert (method.loss, method.temperature, method.queue_length) == (
        *("pixel_info_nce", None, 65_536),  # None is 0.2
    )
    assert (method.head, method.head_width, method.targets) == ("mocov3", None, "pixels")
    assert (data.image_size, data.min_crop_area, data.max_crop_area) == (224, 0.08, 1.0)
    policies = (ViewPolicy(), ViewPolicy(blur_probability=0.1, solarize_probability=0.2))
    assert data.view_policies() == policies
    assert (policies[0].hue, policies[0].gray_probability) == (0.1, 0.2)
    assert config.student.arch == "resnet18"
    # pcd/pcd.py:51-53; the teacher files skip the last norm; no SyncBN and no autocast anywhere.
    assert (method.views, config.teacher.keep_last_norm) == ("cross", False)
    assert (config.optim.sync_batch_norm, config.speed.precision) == (False, "fp32")


def test_pcd_differs_from_the_released_code_in_what_is_said():
    """In four fields alone, which the docstring of the configurations names."""
    ours, released = map(dataclasses.asdict, (DISTILL["pcd_r18"], DISTILL["pcd_r18_released"]))
    different = {
        f"{group}.{name}"
        for group, fields in ours.items()
        if isinstance(fields, dict)
        for name, value in fields.items()
        if value != released[group][name]
    }
    assert different == {
        "teacher.keep_last_norm",
        "method.views",
        "optim.sync_batch_norm",
        "speed.precision",
    }
