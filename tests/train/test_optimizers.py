"""Optimizers and learning rates; the recipes' own tests run them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from pcd_hub.train.configs.distill import OptimConfig, SpeedConfig
from pcd_hub.train.optimizers import (
    build_optimizer,
    gradient_norm,
    learning_rate,
    optimizer_step,
    parameter_groups,
)


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


def test_muon_leaves_the_heads_and_what_is_no_matrix_to_adamw():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1))
    network[1].bias_table = nn.Parameter(torch.randn(5, 3))  # as in Swin
    optim = OptimConfig(name="muon", weight_decay=0.3)
    optimizer = build_optimizer(network, optim, SpeedConfig(), heads=[network[2]])
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for weight in network.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    kinds = {name: set(optimizer.state[weight]) for name, weight in network.named_parameters()}
    adamw = {"exp_avg", "exp_avg_sq", "step"}
    assert kinds.pop("0.weight") == {"momentum_buffer"}
    assert all(kind == adamw for kind in kinds.values())
    rest = {"0.bias", "1.weight", "1.bias", "1.bias_table", "2.weight", "2.bias"}
    assert kinds.keys() == rest
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.3, 0.3, 0.0, 0.0]


@pytest.mark.parametrize(("bound", "moved"), [(None, 5.0), (2.0, 2.0), (50.0, 5.0)])
def test_a_step_is_taken_along_the_clipped_gradient(accelerator, bound, moved):
    layer = nn.Linear(2, 1, bias=False)
    optimizer: Any = torch.optim.SGD(layer.parameters(), lr=1.0)
    start = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[3.0, -4.0]])
    norm = optimizer_step(layer, optimizer, accelerator, clip_grad_norm=bound)
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


def test_all_but_norms_decay():
    network = nn.Sequential()
    for name, layer in {
        "conv": nn.Conv2d(3, 4, 1),
        "batch": nn.BatchNorm2d(4),
        "group": nn.GroupNorm(2, 4),
        "layer": nn.LayerNorm(4),
        "linear": nn.Linear(4, 2),
        "frozen": nn.Linear(2, 2).requires_grad_(False),
    }.items():
        network.add_module(name, layer)
    names = {parameter: name for name, parameter in network.named_parameters()}
    found = {
        group["weight_decay"]: [names[parameter] for parameter in group["params"]]
        for group in parameter_groups(network, weight_decay=0.3)
    }
    assert found == {
        0.3: [f"{layer}.{name}" for layer in ("conv", "linear") for name in ("weight", "bias")],
        0.0: [f"{n}.{name}" for n in ("batch", "group", "layer") for name in ("weight", "bias")],
    }


def test_the_norm_is_that_of_all_gradients_and_float16_is_left_to_its_scaler():
    layer = torch.nn.Linear(3, 2)
    layer(torch.randn(5, 3)).square().sum().backward()
    layer.weight.grad[0, 0] = float("inf")  # type: ignore
    at: Any = SimpleNamespace(scaler=None, device=torch.device("cpu"))
    assert gradient_norm(layer.parameters(), at) == float("inf")
    layer.weight.grad[0, 0] = 3.0  # type: ignore
    flat = torch.cat([p.grad.flatten() for p in layer.parameters()])  # type: ignore
    torch.testing.assert_close(gradient_norm(layer.parameters(), at), flat.norm())
    at.scaler = object()
    layer.weight.grad[0, 0] = float("inf")  # type: ignore
    assert gradient_norm(layer.parameters(), at) == 0
