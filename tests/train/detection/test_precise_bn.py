from types import SimpleNamespace

import pytest
import torch
from timm.layers import freeze_batch_norm_2d
from torch import nn

from pcd_hub.train.detection.precise_bn import recompute_batch_norm_statistics

ALONE = SimpleNamespace(num_processes=1)


def network() -> nn.Sequential:
    """Two norms; what the second sees depends on the batch statistics of the first."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    return layers.double()


def drawn(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [3 + torch.randn(2, 3, s, s, generator=generator).double() * s for s in sizes]


def seen(model: nn.Sequential, batches: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    """What each norm sees of all batches, as channels x values."""
    values: dict[int, list[torch.Tensor]] = {1: [], 3: []}
    for out in batches:
        for number, layer in enumerate(model.train()):
            if number in values:
                values[number].append(out.detach().transpose(0, 1).flatten(1))
            out = layer(out)  # noqa: PLW2901
    return {number: torch.cat(parts, dim=1) for number, parts in values.items()}


def test_the_statistics_are_those_of_all_values_of_all_batches():
    model, batches = network(), drawn(5, 9, 6)
    expected = seen(network(), batches)
    recompute_batch_norm_statistics(model, iter(batches), lambda net, batch: net(batch), ALONE)
    for number, values in expected.items():
        norm = model[number]
        torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            norm.running_var, values.var(1, correction=0), rtol=1e-5, atol=1e-6
        )
        assert not norm._forward_pre_hooks
    # So a batch of all that was seen comes out standardised in the test.
    out = model[1].eval()(expected[1].T[:, :, None, None]).detach()
    assert out.mean((0, 2, 3)) == pytest.approx(torch.zeros(4), abs=1e-5)
    assert out.var((0, 2, 3), correction=0) == pytest.approx(torch.ones(4), abs=1e-4)


def test_batches_of_one_size_give_the_mean_of_the_batch_means():
    model, batches = network(), drawn(7, 7, 7, 7)
    expected = torch.stack([model[0](batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    recompute_batch_norm_statistics(model, batches, lambda net, batch: net(batch), ALONE)
    torch.testing.assert_close(model[1].running_mean, expected, rtol=1e-6, atol=1e-6)


def test_several_processes_take_the_statistics_of_all():
    batches = drawn(5, 9, 6, 8)
    sums: list[torch.Tensor] = []
    other = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda t, _: sums.append(t) or t)
    recompute_batch_norm_statistics(network(), batches[2:], lambda net, batch: net(batch), other)
    this = SimpleNamespace(
        num_processes=2, device="cpu", reduce=lambda t, how: t + sums.pop(0) if how == "sum" else t
    )
    together, alone = network(), network()
    recompute_batch_norm_statistics(together, batches[:2], lambda net, batch: net(batch), this)
    recompute_batch_norm_statistics(alone, batches, lambda net, batch: net(batch), ALONE)
    for name, value in alone.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(together.state_dict()[name], value)


def test_frozen_norms_stay_and_no_batch_is_read_where_all_are():
    frozen = freeze_batch_norm_2d(network())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    batches = iter(drawn(5, 5))
    recompute_batch_norm_statistics(frozen, batches, lambda net, batch: net(batch), ALONE)
    assert len(list(batches)) == 2
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    model = network()
    model[1] = freeze_batch_norm_2d(model[1])
    recompute_batch_norm_statistics(model, drawn(5, 5), lambda net, batch: net(batch), ALONE)
    assert torch.equal(model[1].running_mean, torch.zeros(4).double())
    assert not torch.equal(model[3].running_mean, torch.zeros(4).double())
