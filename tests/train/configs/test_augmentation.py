"""Options of the augmentation: resolved, recorded, and free of contradictions."""

import dataclasses
import json

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.command_line import parse_given
from pcd_hub.train.configs.contrast import CONTRAST
from pcd_hub.train.configs.distill import DISTILL
from pcd_hub.train.configs.fields import check
from pcd_hub.train.configs.files import recorded
from pcd_hub.train.configs.pretraining import DataConfig, resolve_augmentation
from pcd_hub.train.run_folder.resume import changed_settings

NEW = ("augment", "flip", "vertical_flip", "color_jitter", "gray", "blur", "solarize")


@pytest.mark.parametrize(
    "data",
    [
        DataConfig(),
        DataConfig(augment="light"),
        DataConfig(augment="none", color_jitter=True, hue=0.3),
        DataConfig(blur=False, vertical_flip=True),
        DataConfig(augment="light", gray=True, gray_probability=0.6),
        DataConfig(color_jitter=False),
        *(config.data for config in (*DISTILL.values(), *CONTRAST.values())),
    ],
)
def test_resolved_settings_give_the_same_views(data):
    resolved = resolve_augmentation(data)
    unresolved = {name for name, value in dataclasses.asdict(resolved).items() if value is None}
    assert unresolved <= {"num_workers", "early_image_size", "resident_side"}
    check(dataclasses.replace(DISTILL["pcd_r18"], data=resolved))
    first, second = resolved.view_policies()
    if not resolved.color_jitter:
        first, second = (dataclasses.replace(one, hue=0.1) for one in (first, second))
    assert (first, second) == data.view_policies()
    assert resolve_augmentation(resolved) == resolved


def test_options_are_read():
    _, config, given = parse_given(
        DISTILL,
        "pcd_r18",
        ["--data.augment=light", "--data.flip=False", "--data.vertical-flip=True"],
    )
    assert (config.data.augment, config.data.flip, config.data.vertical_flip) == (
        *("light", False, True),
    )
    assert {"data.augment", "data.flip", "data.vertical_flip"} <= given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gray": False, "gray_probability": 0.5},
            "0.5: --data.gray is off .*; set --data.gray True or --data.gray-probability 0$",
        ),
        (
            {"augment": "none", "gray_probability": 0.5},
            r"--data.gray is off \(with --data.augment none\)",
        ),
        ({"color_jitter": False, "hue": 0.2}, "--data.hue 0.2: --data.color-jitter is off"),
    ],
)
def test_strengths_of_what_is_off_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        check(dataclasses.replace(DISTILL["pcd_r18"], data=DataConfig(**options)))


def test_a_run_of_the_release_before_is_resumed_with_the_default_alone():
    """It recorded hue and probability of gray, and no switches."""
    requested = DISTILL["pcd_r18"]
    old = json.loads(json.dumps(recorded(requested)))
    for name in NEW:
        del old["data"][name]
    old["data"] |= {"hue": 0.1, "gray_probability": 0.2}

    def changes(requested):
        new = dataclasses.replace(requested, data=resolve_augmentation(requested.data))
        defaults = recorded(DISTILL["pcd_r18"])
        asked = recorded(requested)
        return changed_settings(old, recorded(new), requested=asked, defaults=defaults, step=1)

    assert changes(requested) == []
    for data in (DataConfig(augment="light"), DataConfig(flip=False), DataConfig(hue=0.2)):
        with pytest.raises(Exception, match="was written with another --data"):
            changes(dataclasses.replace(requested, data=data))
