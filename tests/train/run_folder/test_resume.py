"""What may change at resume, setting by setting."""

import dataclasses
from typing import Any

import pytest

from pcd_hub.errors import CheckpointError
from pcd_hub.train.configs.contrast import ContrastConfig
from pcd_hub.train.configs.detection import DetectConfig
from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.configs.segmentation import FinetuneSegConfig
from pcd_hub.train.run_folder.resume import (
    LENGTH,
    MAY_CHANGE,
    changed_inputs,
    changed_settings,
    check_length,
    first_length,
    load_parts,
    option,
    protocol_note,
)

CONFIGS = (DistillConfig, ContrastConfig, DetectConfig, FinetuneSegConfig)


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        found |= leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


@pytest.mark.parametrize("config", CONFIGS)
def test_a_setting_may_change_or_is_refused_by_its_name(config):
    for name in leaves(config()):
        old: Any = {name: "before"}
        if name in MAY_CHANGE:
            (change,) = changed_settings(old, {name: "now"}, step=7)
            expected = {"after_step": 7, "what": option(name), "from": "before", "to": "now"}
            assert change == expected
        else:
            with pytest.raises(CheckpointError, match=f"another {option(name)} .before, now now"):
                changed_settings(old, {name: "now"}, step=7)


def test_every_setting_that_may_change_exists():
    known = {name for config in CONFIGS for name in leaves(config())}
    assert known >= MAY_CHANGE > set(LENGTH)


def test_a_setting_that_one_of_both_lacks_is_a_change():
    with pytest.raises(CheckpointError, match=r"another --data.shuffle-buffer \(None, now 1000\)"):
        changed_settings({"data": {}}, {"data": {"shuffle_buffer": 1000}}, step=1)


def test_a_checkpoint_older_than_a_setting_has_its_default():
    defaults = {"data": {"augment": "default"}}
    old, light = {"data": {}}, {"data": {"augment": "light"}}
    assert changed_settings(old, defaults, defaults=defaults, step=1) == []
    with pytest.raises(CheckpointError, match=r"another --data.augment \(default, now light\)"):
        changed_settings(old, light, defaults=defaults, step=1)


@pytest.mark.parametrize(
    ("name", "accept", "message"),
    [
        ("data", False, "the data changed after step 3: .* a, found b; .*accept-changed"),
        ("teacher", False, "the teacher changed .*accept-changed-data"),
        ("backbone", False, "the backbone changed .*another folder$"),
        ("backbone", True, "the backbone changed .*another folder$"),
    ],
)
def test_other_inputs_are_refused(name, accept, message):
    with pytest.raises(CheckpointError, match=message):
        changed_inputs({name: "a"}, {name: "b"}, step=3, accept=accept)


def test_inputs_that_are_the_same_accepted_or_not_stated_are_taken():
    assert changed_inputs({"data": "a"}, {"data": "a"}, step=3, accept=False) == []
    assert changed_inputs({}, {"data": "a"}, step=3, accept=False) == []
    (change,) = changed_inputs({"data": "a"}, {"data": "b"}, step=3, accept=True)
    assert protocol_note([change]) == "; resumed after step 3 with another data (a, now b)"
    assert protocol_note([change | {"what": "--run.keep-checkpoints"}]) == ""


def test_the_end_may_be_now_and_not_before():
    check_length(6, 6)
    with pytest.raises(CheckpointError, match="has 6 steps, expected at most 5"):
        check_length(6, 5)


def test_a_state_that_does_not_fit_is_one_line():
    from torch import nn

    state = nn.Linear(3, 2).state_dict()
    with pytest.raises(CheckpointError, match="after step 4 does not fit this run's network") as e:
        load_parts({"step": 4, "network": state}, {"network": nn.Linear(2, 2)})
    assert "\n" not in str(e.value)
    with pytest.raises(CheckpointError, match=r"scaler \(KeyError"):
        load_parts({"step": 4}, {"scaler": nn.Linear(2, 2)})
    load_parts({"step": 4}, {"early_verdict": nn.Linear(2, 2)})  # of a release that had none


def test_the_first_length_is_that_in_steps_however_it_was_changed():
    changes = [
        {"after_step": 2, "what": "--optim.epochs", "from": 3, "to": 6},
        {"after_step": 2, "what": "--run.max-steps", "from": 300, "to": 600},
        {"after_step": 9, "what": "--run.max-steps", "from": 600, "to": 900},
    ]
    assert first_length(changes, 900) == 300
    assert first_length([], 900) == 900
