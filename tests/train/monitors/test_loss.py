"""The loss monitor on an accelerator; the recipes' own tests run it on the CPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pcd_hub.data.loader import Batch
from pcd_hub.data.workers import STOP_SIGNALS
from pcd_hub.errors import ConfigError
from pcd_hub.train.monitors.loss import HostCopy, LossMonitor

NAN = float("nan")


def build_monitor(folder, other_process=0.0):
    accelerator: Any = SimpleNamespace(
        device=torch.device("cpu"),
        process_index=0,
        reduce=lambda values, _: values + other_process,
    )
    run: Any = SimpleNamespace(path=folder, checkpoints=folder / "checkpoints")
    monitor = LossMonitor(accelerator, run, lr_option="--lr")
    monitor._delay = 1
    return monitor


def record(monitor, step, *, loss=1.0, norm=1.0, signum=0):
    views = torch.full((1, 2, 3, 4, 4), step, dtype=torch.uint8)
    one = torch.tensor([step])
    crops, flips = torch.zeros(1, 2, 4), torch.zeros(1, 2, 2, dtype=torch.bool)
    batch = [Batch(views=views, indices=one, epochs=one, crops=crops, flips=flips)]
    return monitor.record_step(
        step, 0.1, batch, torch.tensor(loss), torch.tensor(norm), signum=signum
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": NAN, "norm": NAN}, "the loss is nan at step 3; lower --lr"),
        ({"norm": float("inf")}, "the norm of the gradient is inf at step 3; lower --lr"),
    ],
)
def test_an_accelerator_is_checked_one_step_late_and_the_batch_is_saved(tmp_path, values, message):
    monitor = build_monitor(tmp_path)
    for step in range(3):
        record(monitor, step)
    record(monitor, 3, **values)
    with pytest.raises(ConfigError, match=message) as refused:
        record(monitor, 4, loss=NAN, norm=NAN)
    assert "checkpoint" not in str(refused.value), "there is none"
    kept = torch.load(tmp_path / "bad_batch_0.pt", weights_only=True)
    assert [step["step"] for step in kept] == [3, 4]
    assert [int(step["batch"][0]["views"][0, 0, 0, 0, 0]) for step in kept] == [3, 4]


def test_a_value_before_the_first_update_is_not_the_fault_of_the_learning_rate(tmp_path):
    monitor = build_monitor(tmp_path)
    record(monitor, 0, loss=NAN)
    message = "nan at step 0; teacher, student or images give values that are not finite before"
    with pytest.raises(ConfigError, match=message):
        record(monitor, 1, loss=NAN)


def test_the_last_step_is_checked_before_a_checkpoint(tmp_path):
    monitor = build_monitor(tmp_path)
    record(monitor, 0)
    monitor.check_weights(torch.nn.Linear(2, 2))
    record(monitor, 1, norm=NAN)
    with pytest.raises(ConfigError, match="gradient is nan at step 1"):
        monitor.check_weights(torch.nn.Linear(2, 2))


def test_a_full_disk_does_not_hide_the_bad_value(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    monitor = build_monitor(tmp_path)
    record(monitor, 0)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.pt").touch()
    message = r"the loss is nan at step 1; lower --lr .*; .*bad_batch_0.pt \(\[enforce fail .* good"
    record(monitor, 1, loss=NAN)
    with pytest.raises(ConfigError, match=message):
        record(monitor, 2)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_to_any_process_reaches_all_one_step_later_or_at_a_checkpoint(tmp_path, signum):
    monitor = build_monitor(tmp_path)
    assert [record(monitor, 0), record(monitor, 1, signum=signum), record(monitor, 2)] == [
        0,
        0,
        signum,
    ]
    assert monitor.check_weights(torch.nn.Linear(2, 2)) == 0
    assert record(monitor, 3, signum=signum) == 0
    assert monitor.check_weights(torch.nn.Linear(2, 2)) == signum
    others = torch.tensor([0.0, 0.0, *(float(each == signum) for each in STOP_SIGNALS)])
    other = build_monitor(tmp_path, other_process=others)
    assert [record(other, 0), record(other, 1)] == [0, signum]


def test_cuda_values_are_copied_asynchronously_and_waited_for_when_read(monkeypatch):
    """Requests to the device, in order."""
    requests = []
    event = SimpleNamespace(
        record=lambda: requests.append("record"), synchronize=lambda: requests.append("wait")
    )
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    on_host = SimpleNamespace(tolist=lambda: requests.append("read") or [1.0])
    move_to_device: Any = SimpleNamespace(
        is_cuda=True, to=lambda *where, **how: requests.append((*where, how)) or on_host
    )
    copy = HostCopy(move_to_device)
    assert requests == [("cpu", {"non_blocking": True}), "record"]
    assert copy.tolist() == [1.0]
    assert requests[2:] == ["wait", "read"]
