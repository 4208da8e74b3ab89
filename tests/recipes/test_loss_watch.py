"""The watch beside an accelerator; the recipes' own tests see it on the CPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loss_watch import LossWatch, gradient_norm
from pcd_hub.data.loader import Batch
from pcd_hub.errors import ConfigError

NAN = float("nan")


def watch(folder, device="meta"):
    accelerator: Any = SimpleNamespace(
        device=torch.device(device), process_index=0, reduce=lambda values, _: values
    )
    return LossWatch(accelerator, SimpleNamespace(path=folder), lr_option="--lr")  # type: ignore


def note(watch, step, *, loss=1.0, norm=1.0):
    views = torch.full((1, 2, 3, 4, 4), step, dtype=torch.uint8)
    batch = [Batch(views=views, indices=torch.tensor([step]))]
    watch.note(step, 0.1, batch, torch.tensor(loss), torch.tensor(norm))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": NAN, "norm": NAN}, "the loss is nan at step 3; lower --lr"),
        ({"norm": float("inf")}, "the norm of the gradient is inf at step 3; lower --lr"),
    ],
)
def test_an_accelerator_is_looked_at_one_step_late_and_the_batch_is_still_there(
    tmp_path, values, message
):
    watched = watch(tmp_path)
    for step in range(3):
        note(watched, step)
    note(watched, 3, **values)
    with pytest.raises(ConfigError, match=message):
        note(watched, 4, loss=NAN, norm=NAN)
    kept = torch.load(tmp_path / "bad_batch_0.pt", weights_only=True)
    assert [step["step"] for step in kept] == [3, 4]
    assert [int(step["batch"][0]["views"][0, 0, 0, 0, 0]) for step in kept] == [3, 4]


def test_the_last_step_is_looked_at_before_it_is_saved(tmp_path):
    watched = watch(tmp_path)
    note(watched, 0)
    watched.check(torch.nn.Linear(2, 2))
    note(watched, 1, norm=NAN)
    with pytest.raises(ConfigError, match="gradient is nan at step 1"):
        watched.check(torch.nn.Linear(2, 2))


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
