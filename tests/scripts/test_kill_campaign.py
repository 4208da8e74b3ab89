"""The campaign finds what it looks for; one kill of it, for real."""

import sys

import pytest
import torch

import kill_campaign


def test_a_single_bit_is_a_difference():
    state = {"step": 3, "weights": [torch.ones(2), {"a": torch.zeros(1)}]}
    other = {"step": 3, "weights": [torch.ones(2), {"a": torch.full((1,), 1e-45)}]}
    assert kill_campaign.differences(state, state) == []
    assert kill_campaign.differences(state, other) == [".weights[1].a"]
    assert kill_campaign.differences(state, {"step": 3}) == [".weights"]
    assert kill_campaign.differences([1, 2], [1]) == [""]


@pytest.mark.timeout(600)
def test_a_killed_run_ends_as_if_it_never_was(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kill_campaign.py", "--kills", "1", "--steps", "8"])
    kill_campaign.main()
    assert "1 kills of 1 processes" in capsys.readouterr().out
