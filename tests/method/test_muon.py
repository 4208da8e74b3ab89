import copy
import math

import pytest
import torch
from torch import nn

from pcd_hub.method.muon import Muon, _iterate, _iterate_on_products, orthogonalise
from pcd_hub.method.optim import decay_groups


def reference_orthogonalisation(matrix):
    values = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        product = values @ values.T
        values = 3.4445 * values + (-4.7750 * product + 2.0315 * product @ product) @ values
    return values


def reference_muon(weight, gradients, *, lr, momentum, weight_decay):
    """Apply Muon's update step by step in float64."""
    shape, velocity = weight.shape, torch.zeros_like(weight)
    for gradient in gradients:
        velocity = momentum * velocity + (1 - momentum) * gradient
        update = (momentum * velocity + (1 - momentum) * gradient).flatten(1)
        values = reference_orthogonalisation(update)
        scale = 0.2 * math.sqrt(max(update.shape))
        weight = weight * (1 - lr * weight_decay) - lr * scale * values.reshape(shape)
    return weight


@pytest.mark.parametrize("shape", [(7, 5), (4, 3, 3, 3), (40, 2, 3, 3)])
def test_matrices_get_the_reference_update(shape):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}
    start = torch.randn(shape, dtype=torch.float64)
    gradients = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
    weights = [nn.Parameter(start.clone()), nn.Parameter(2 * start)]  # of one shape: a batch
    optimizer = Muon(weights, **settings)
    for gradient in gradients:
        for weight, sign in zip(weights, (1, -3), strict=True):
            weight.grad = sign * gradient
        optimizer.step()
        assert torch.equal(weights[0].grad, gradient), "the gradient is not changed in place"
    for weight, begin, sign in zip(weights, (start, 2 * start), (1, -3), strict=True):
        expected = reference_muon(begin, [sign * each for each in gradients], **settings)
        torch.testing.assert_close(weight.data, expected, rtol=1e-9, atol=1e-9)


def test_what_is_no_matrix_gets_adamw():
    """A bias, a scalar and a depthwise convolution."""
    shapes = [(6,), (), (5, 1, 3, 3)]
    start = [torch.randn(shape) for shape in shapes]
    results = []
    for make in (Muon, torch.optim.AdamW):
        weights = [nn.Parameter(value.clone()) for value in start]
        optimizer = make(weights, lr=0.1, betas=(0.9, 0.95), weight_decay=0.3)
        for step in range(4):
            for number, weight in enumerate(weights):
                weight.grad = torch.full_like(weight, 0.1 * step - number)
            optimizer.step()
        results.append([weight.data for weight in weights])
    torch.testing.assert_close(*results)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.9 has the first Muon")
def test_an_update_is_that_of_pytorchs_muon():
    """Which takes matrices alone, and computes in bfloat16."""
    start, results = torch.randn(24, 60), []
    gradients = [torch.randn(24, 60) for _ in range(3)]
    for make, options in ((Muon, {}), (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})):
        weight = nn.Parameter(start.clone())
        optimizer = make([weight], lr=0.1, weight_decay=0.1, **options)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        results.append(weight.data - start)
    torch.testing.assert_close(*results, rtol=0.02, atol=0.02 * results[0].abs().max().item())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_iteration_of_gpus_agrees_with_that_of_cpus(device):
    matrices = torch.randn(2, 32, 200, device=device)
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True)
    on_gpus, on_cpus = _iterate(matrices).cpu(), _iterate_on_products(matrices.cpu())
    assert (on_gpus - on_cpus).norm() < 0.06 * on_cpus.norm(), "bfloat16"


@pytest.mark.parametrize("shape", [(3, 8, 20), (1, 20, 8), (2, 16, 16)])
def test_singular_values_become_about_one(shape):
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.6
    assert values.max() < 1.25


@pytest.mark.parametrize(
    ("rows", "sizes"), [(64, [64]), (65, [33, 32]), (130, [44, 44, 42]), (192, [64, 64, 64])]
)
@pytest.mark.parametrize("is_tall", [False, True])
def test_a_large_matrix_is_orthogonalised_in_blocks_of_up_to_64_rows(rows, sizes, is_tall):
    matrices = torch.randn(2, rows, 300, dtype=torch.float64)
    result = orthogonalise(matrices.mT).mT if is_tall else orthogonalise(matrices)
    assert result.shape == matrices.shape
    for blocks, values in zip(matrices.split(sizes, 1), result.split(sizes, 1), strict=True):
        for block, orthogonal in zip(blocks, values, strict=True):
            expected = reference_orthogonalisation(block)
            torch.testing.assert_close(orthogonal, expected, rtol=1e-9, atol=1e-9)


def test_directions_without_a_gradient_stay_without_one():
    """In float32, rounding must not grow to an update: here 3 of 64 directions have a gradient."""
    gradient = torch.randn(1, 64, 3) @ torch.randn(1, 3, 500)
    values = torch.linalg.svdvals(orthogonalise(gradient)[0])
    assert values[2] > 0.6
    assert values[3] < 1e-3
    assert not orthogonalise(torch.zeros(2, 4, 9)).any()


def test_it_trains_a_network_and_its_state_is_restored():
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    labels = (images.mean((1, 2, 3)) > 0).float()

    def network():
        torch.manual_seed(1)
        conv = nn.Conv2d(3, 8, 3, groups=1)
        layers = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
        return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))

    def steps(model, optimizer, count):
        losses = []
        for _ in range(count):
            predicted = model(images)[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(predicted, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    one = network()
    optimizer = Muon(decay_groups(one, weight_decay=0.01), lr=0.02)
    first = steps(one, optimizer, 10)
    other = network()
    other.load_state_dict(one.state_dict())
    again = Muon(decay_groups(other, weight_decay=0.01), lr=0.02)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rest = steps(one, optimizer, 20)
    assert steps(other, again, 20) == rest
    assert rest[-1] < 0.5 * first[0]


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}]
)
def test_a_setting_out_of_range_is_named(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name}=") as caught:
        Muon([nn.Parameter(torch.zeros(2, 2))], **({"lr": 0.1} | options))
    assert str(value) in str(caught.value)
