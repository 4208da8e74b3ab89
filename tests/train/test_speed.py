"""Every speed option, compared with the same run without it."""

import itertools
import logging
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from pcd_hub.errors import ConfigError
from pcd_hub.train import contrast as pretrain
from pcd_hub.train import distill, speed
from pcd_hub.train.configs.distill import SpeedConfig
from pcd_hub.train.distillation import device
from pcd_hub.train.monitors.loss import LossMonitor
from tests.train.conftest import check_that_no_step_reads_back, trace
from tests.train.test_contrast import TINY as CONTRAST

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def run(tiny: list[str], folder: Path, *options: str) -> list[float]:
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = [*tiny, "--run.no-store", f"--run.output-dir={folder}", *options]
    distill.main(arguments)
    return [line["loss"] for line in trace(folder)]


@pytest.mark.parametrize(
    "switch",
    [
        "--teacher.no-fold-batch-norms",
        "--speed.no-channels-last",
        "--speed.no-foreach",
        "--speed.no-keep-memory",
    ],
)
@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_the_loss_without_an_option_differs_only_by_rounding(tiny, tmp_path, switch, optimizer):
    options = [f"--optim.name={optimizer}"]
    with_it = run(tiny, tmp_path / "with", *options)
    without = run(tiny, tmp_path / "without", *options, switch)
    assert without == pytest.approx(with_it, rel=2e-4)


@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles")  # torch 2.6, of its own
@pytest.mark.usefixtures("jaxtyping_off")  # which torch 2.6 cannot compile
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("parts", "tolerance"),
    [
        ("teacher", 2e-4),
        pytest.param("teacher, student, head", 1e-2, marks=pytest.mark.gpu, id="gpu"),
    ],
)
def test_a_compiled_run_has_the_same_loss(tiny, tmp_path, caplog, parts, tolerance):
    with caplog.at_level(logging.INFO, logger="pcd_hub"):
        compiled = run(tiny, tmp_path / "compiled", "--speed.compile=True")
    assert f"compiled: {parts}\n" in caplog.text, caplog.text
    assert compiled == pytest.approx(run(tiny, tmp_path / "eager"), rel=tolerance)


def test_without_a_compiler_the_run_continues_with_a_one_line_warning(
    tiny, tmp_path, caplog, monkeypatch
):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", no_compiler)
    with caplog.at_level(logging.WARNING, logger="pcd_hub"):
        losses = run(tiny, tmp_path / "run", "--speed.compile=True")
    (line,) = [r.getMessage() for r in caplog.records if "not compiled" in r.getMessage()]
    assert "no C++ compiler" in line
    assert "\n" not in line
    assert losses == run(tiny, tmp_path / "eager")


def test_the_default_compiles_only_long_runs_on_gpus():
    cpu, gpu, long = torch.device("cpu"), torch.device("cuda"), speed.MIN_STEPS_TO_COMPILE
    assert speed.wants_compile(SpeedConfig(), gpu, steps=long)
    assert not speed.wants_compile(SpeedConfig(), gpu, steps=long - 1)
    assert not speed.wants_compile(SpeedConfig(), cpu, steps=long)
    assert speed.wants_compile(SpeedConfig(compile=True), cpu, steps=1)
    assert not speed.wants_compile(SpeedConfig(compile=False), gpu, steps=long)


@pytest.mark.parametrize("trained", [True, False])
def test_the_pass_that_compiles_changes_nothing(trained):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    network.requires_grad_(trained)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(2, 3, 8, 8)
    rng = torch.get_rng_state()
    speed.run_once(network, images, accelerator=Accelerator(cpu=True))
    assert torch.equal(torch.get_rng_state(), rng)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.usefixtures("jaxtyping_off")
@pytest.mark.parametrize(
    ("recipe", "options", "compiled", "calls"),
    [
        (distill, [], "teacher, student, head", 3),
        (distill, ["--data.image-size=64", "--method.targets=pooled"], "teacher, student, head", 3),
        (distill, ["--optim.accumulation-steps=2"], "teacher, student, head", 6),
        (pretrain, ["--method.loss=mocov3"], "encoder, momentum encoder", 4),
        (pretrain, ["--method.loss=simclr"], "encoder", 1),
    ],
)
def test_every_step_runs_the_networks_that_are_logged_as_compiled(
    tiny, tmp_path, monkeypatch, caplog, recipe, options, compiled, calls
):
    """Each part once, before the first step, and never again for another shape or mode."""
    counter, torch_compile = _Counter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: torch_compile(*a, backend=counter))
    monkeypatch.setattr(device, "compiles_training", lambda device: True)
    seen, record_step = [], LossMonitor.record_step
    inside_autocast, backward = [], Accelerator.backward

    def watched(self, loss):
        inside_autocast.append(torch.is_autocast_enabled("cpu"))
        return backward(self, loss)

    monkeypatch.setattr(Accelerator, "backward", watched)

    def count(self, *args, **kwargs):
        seen.append((counter.graphs, counter.calls))
        return record_step(self, *args, **kwargs)

    monkeypatch.setattr(LossMonitor, "record_step", count)
    arguments = [*(tiny if recipe is distill else CONTRAST), *options, "--run.max-steps=3"]
    with caplog.at_level(logging.INFO, logger="pcd_hub"):
        arguments += ["--speed.compile=True", "--speed.precision=bf16"]
        recipe.main([*arguments, f"--run.output-dir={tmp_path / 'run'}"])
    assert f"compiled: {compiled}\n" in caplog.text
    assert "not compiled" not in caplog.text
    graphs = len(compiled.split(", "))
    assert [each for each, _ in seen] == [graphs] * 3
    assert [b - a for (_, a), (_, b) in itertools.pairwise(seen)] == [calls] * 2
    assert set(inside_autocast) == {False}, "it rounds gradients, of similarity_kl by 4e-3"


class _Counter:
    """A backend that changes nothing: how many graphs it was given, how often they have run."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1

        def run_graph(*inputs):
            self.calls += 1
            return graph.forward(*inputs)

        return run_graph


def test_sync_batch_norm_is_left_uncompiled_and_it_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="pcd_hub"):
        assert not speed.has_sync_batch_norm("student", nn.Sequential(nn.BatchNorm2d(3)))
        assert not caplog.text
        assert speed.has_sync_batch_norm("student", nn.Sequential(nn.SyncBatchNorm(3)))
    assert "not compiled: student, because SyncBatchNorm" in caplog.text


def test_if_another_process_cannot_compile_none_does(monkeypatch, caplog):
    monkeypatch.setattr(speed, "gather_object", lambda mine: [*mine, "no C++ compiler"])
    network = nn.Linear(2, 2)
    one: Any = None
    assert not speed.compile_networks({"student": network}, lambda: None, one)
    assert "not compiled (student): no C++ compiler. The run continues uncompiled" in caplog.text


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (distill, ["--optim.name=lars", "--optim.clip-grad-norm=1.0"]),
        (distill, ["--optim.name=adamw", "--method.loss=cosine_smooth_l1"]),
        (pretrain, ["--method.loss=mocov3"]),
        (pretrain, ["--method.loss=simclr"]),
    ],
)
def test_a_step_reads_no_value_from_the_device(tiny, tmp_path, recipe, options):
    arguments = [*(tiny if recipe is distill else CONTRAST), *options]
    check_that_no_step_reads_back(recipe.main, [*arguments, f"--run.output-dir={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    ("option", "from_launcher", "units", "expected"),
    [
        ("auto", "no", True, "bf16"),
        ("auto", "no", False, "no"),
        ("auto", "fp16", True, "fp16"),
        ("fp32", "bf16", True, "no"),
        ("bf16", "no", False, "bf16"),
    ],
)
def test_precision_follows_option_launcher_and_device(
    monkeypatch, option, from_launcher, units, expected
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", from_launcher)
    monkeypatch.setattr(speed, "has_bfloat16_units", lambda: units)
    found = speed.mixed_precision(SpeedConfig(precision=option))
    assert (found or from_launcher) == expected


@pytest.mark.parametrize(
    ("precision", "from_launcher", "on_cpu", "message"),
    [
        ("fp16", "no", True, "^--speed.precision fp16 needs a GPU; on a CPU use fp32 or bf16$"),
        (None, "fp16", True, "^--mixed_precision fp16 needs a GPU"),
        (None, "fp8", False, "--mixed_precision fp8, from the launcher: expected one of no, bf16"),
        ("no", "fp16", True, None),
        (None, "FP16", False, None),
    ],
)
def test_an_unsupported_precision_is_rejected(
    monkeypatch, precision, from_launcher, on_cpu, message
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", from_launcher)
    if message is None:
        speed.check_precision(precision, on_cpu=on_cpu)
        return
    with pytest.raises(ConfigError, match=message):
        speed.check_precision(precision, on_cpu=on_cpu)


def test_bfloat16_units_are_read_from_the_processors_flags(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, expected in (("fpu avx2 avx512f", False), ("fpu avx512_bf16 x", True)):
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: f"flags\t: {flags}\n")
        assert speed.has_bfloat16_units() is expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_tensor():
    """A child process counts its page faults, for large tensors that come and go."""
    import subprocess
    import sys

    code = """
import resource, sys, torch
from pcd_hub.train.speed import keep_freed_memory
if sys.argv[1] == "keep": assert keep_freed_memory()
def come_and_go():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for number in range(6):
        kept = [torch.ones(10 + (number + k) % 3, 2**20) for k in range(3)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([come_and_go() for _ in range(2)][-1])
"""
    root = Path(__file__).parents[2]
    count = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", code, how],
                cwd=root,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for how in ("keep", "give back")
    }
    assert count["give back"] > 6 * 30 * 2**22 / 4096, "every tensor is mapped again"
    assert count["keep"] < count["give back"] / 5
