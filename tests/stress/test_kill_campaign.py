"""A campaign with one kill, and checks that a campaign detects differences."""

import sys

import pytest
import torch

from tests.stress import kill_campaign

pytestmark = pytest.mark.stress


def test_a_difference_of_one_bit_is_found():
    state = {"step": 3, "weights": [torch.ones(2), {"a": torch.zeros(1)}]}
    other = {"step": 3, "weights": [torch.ones(2), {"a": torch.full((1,), 1e-45)}]}
    assert kill_campaign.differences(state, state) == []
    assert kill_campaign.differences(state, other) == [".weights[1].a"]
    assert kill_campaign.differences(state, {"step": 3}) == [".weights"]
    assert kill_campaign.differences([1, 2], [1]) == [""]


@pytest.mark.timeout(600)
def test_a_killed_run_ends_bit_equal_to_an_uninterrupted_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kill_campaign.py", "--kills", "1", "--steps", "8"])
    kill_campaign.main()
    assert "1 kills of 1 processes" in capsys.readouterr().out
