import copy

import pytest
import torch
from torch import nn

from pcd_hub.method.optim import LARS, decay_groups


def reference_lars(weight, gradients, *, lr, momentum, weight_decay, trust_coefficient, eps):
    """Apply the update of MoCo v3's LARS step by step in float64."""
    weight, velocity = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient in gradients:
        update = gradient.double()
        if weight.ndim > 1:
            update = update + weight_decay * weight
            ratio = trust_coefficient * weight.norm() / (update.norm() + eps)
            update = update * (ratio if weight.norm() > 0 and update.norm() > 0 else 1.0)
        velocity = momentum * velocity + update
        weight = weight - lr * velocity
    return weight


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (7, 5), (6,), ()])
def test_lars_equals_the_reference(shape, foreach):
    settings = {
        "lr": 0.7,
        "momentum": 0.9,
        "weight_decay": 1e-2,
        "trust_coefficient": 1e-2,
        "eps": 1e-8,
    }
    start = torch.randn(shape, dtype=torch.float64)
    gradients = [torch.randn(shape, dtype=torch.float64) for _ in range(5)]
    weight = nn.Parameter(start.clone())
    optimizer = LARS([weight], **settings, foreach=foreach)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(weight.grad, gradient), "the gradient must not be changed in place"
    torch.testing.assert_close(
        weight.data, reference_lars(start, gradients, **settings), rtol=1e-12, atol=1e-12
    )


def test_foreach_equals_the_update_of_single_weights():
    """Weights have 0 to 4 dimensions; one is zero and one has no gradient."""
    torch.manual_seed(1)
    start = [torch.randn(shape) for shape in [(4, 3, 3, 3), (7, 5), (6,), (), (3, 3), (2, 2)]]
    start[4].zero_()
    results = []
    for foreach in (True, False):
        weights = [nn.Parameter(value.clone()) for value in start]
        optimizer = LARS(decay_list(weights), lr=0.3, weight_decay=0.1, foreach=foreach)
        for step in range(3):
            for number, weight in enumerate(weights[:-1]):
                weight.grad = torch.full_like(weight, 0.1 * (step + number))
            optimizer.step()
        results.append(weights)
    for together, single, before in zip(*results, start, strict=True):
        torch.testing.assert_close(together, single, rtol=1e-6, atol=1e-7)
        assert torch.equal(together, before) == (before is start[-1])


def decay_list(weights):
    return [{"params": weights[:3], "weight_decay": 0.2}, {"params": weights[3:]}]


def test_zero_weights_and_zero_gradients_stay_finite():
    weights = [nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.ones(3, 3))]
    weights[0].grad, weights[1].grad = torch.ones(3, 3), torch.zeros(3, 3)
    LARS(weights, lr=0.1).step()
    assert all(weight.isfinite().all() for weight in weights)
    torch.testing.assert_close(weights[0].data, torch.full((3, 3), -0.1))


def test_momentum_goes_through_a_state_dict():
    def steps(optimizer, weight, count):
        for number in range(count):
            weight.grad = torch.full_like(weight, 0.1 * (number + 1))
            optimizer.step()

    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([first], lr=0.5)
    steps(optimizer, first, 3)
    second.data.copy_(first.data)
    again = LARS([second], lr=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, first, 2)
    steps(again, second, 2)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"eps": 0.0}]
)
def test_invalid_settings_are_rejected(wrong):
    with pytest.raises(ValueError, match="expected lr and weight_decay >= 0"):
        LARS([nn.Parameter(torch.ones(1))], **({"lr": 0.1} | wrong))


class _UnusualLayers(nn.Module):
    """A module with parameters that a list of layer types would miss."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.layer_scale = nn.Parameter(torch.ones(8))
        self.position = nn.Parameter(torch.ones(1, 4, 8))
        self.embedding = nn.Embedding(3, 8)
        self.linear = nn.Linear(8, 8)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.tied = self.embedding
        self.frozen = nn.Linear(8, 8).requires_grad_(False)


def test_every_trainable_parameter_is_in_exactly_one_group():
    module = _UnusualLayers()
    groups = decay_groups(module, weight_decay=0.3)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(p) for p in module.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert len(set(grouped)) == len(grouped)
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim <= 1 for p in groups[1]["params"])
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
