"""The parts that the training recipes share; the recipes' own tests run them together."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from pcd_hub.train.configs.distill import OptimConfig, SpeedConfig
from pcd_hub.train.loop import build_optimizer, learning_rate, update


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("foreach", [True, False])
def test_adamw_forgets_the_scale_of_gradients_sooner_than_by_default(foreach):
    optim, speed = OptimConfig(name="adamw", weight_decay=0.3), SpeedConfig(foreach=foreach)
    optimizer = build_optimizer(nn.Linear(2, 1), optim, speed)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.95)] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize(("bound", "moved"), [(None, 5.0), (2.0, 2.0), (50.0, 5.0)])
def test_a_step_is_taken_along_the_clipped_gradient(accelerator, bound, moved):
    layer = nn.Linear(2, 1, bias=False)
    optimizer: Any = torch.optim.SGD(layer.parameters(), lr=1.0)
    start = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[3.0, -4.0]])
    norm = update(layer, optimizer, accelerator, OptimConfig(clip_grad_norm=bound))
    assert float(norm) == 5.0, "as it was before it was clipped"
    step = layer.weight.detach() - start
    torch.testing.assert_close(step, torch.tensor([[-0.6, 0.8]]) * moved)
    assert layer.weight.grad is None


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_warmup_may_be_the_whole_run(steps):
    optim = OptimConfig(lr_per_256=1.0, global_batch_size=256, warmup_share=1.0)
    rates = [learning_rate(step, optim, steps) for step in range(steps)]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
