"""Every benchmark runs at a small size and reports what it measured."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import benchmark
import benchmark_parts
import benchmark_step
import measuring
from benchmark_step import STAGES

SMALL = [
    "--teacher=test_resnet",
    "--student=test_resnet",
    "--image-size=32",
    "--batch-size=4",
    "--queue-length=16",
    "--steps=1",
    "--repeats=1",
]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 48), (40 * number, 90, 200)).save(folder / f"{number}.jpg")
    return folder


@pytest.mark.timeout(600)
def test_recipe_and_plain_step_are_compared(tmp_path, images, capsys, monkeypatch):
    """The recipe's step runs in a new process, the plain one here, which saves its start."""
    in_new_process = benchmark.run_step

    def run_step(kind, case, steps, timeline):
        if kind == "plain":
            return benchmark_step.measure(case, kind, steps, timeline)
        return in_new_process(kind, case, steps, timeline)

    monkeypatch.setattr(benchmark, "run_step", run_step)
    out = tmp_path / "results.json"
    options = [f"--images={images}", f"--out={out}", "--no-bf16", "--also", "resident+cached"]
    benchmark.main(["step", *SMALL, *options, "--timeline", str(tmp_path / "trace.json")])
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())["step"]
    assert set(results["variants"]) == {"plain", "recipe", "recipe, resident+cached"}
    for name, variant in results["variants"].items():
        assert variant["images_per_s"] == pytest.approx(4 / variant["seconds"])
        split = variant["split"]
        assert set(split) == set(benchmark_step.STAGES)
        assert all(split[stage] > 0 for stage in split)
        teacher = variant["share_of_matmul_rate_by_stage"].get("teacher", 0)
        assert (teacher > 0) == ("cached" not in name)
        assert variant["peak_bytes"] > 2**26
    assert "Bottleneck: " in printed
    assert "| recipe |" in printed
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {"teacher", "student", "backward"} <= {event.get("name") for event in trace}


def test_what_was_measured_stays_if_the_next_row_fails(tmp_path, images, monkeypatch, capsys):
    def run_step(kind, case, steps, timeline):
        if kind == "plain":
            raise SystemExit("out of time")
        return {"seconds": [0.5], "split": dict.fromkeys(STAGES, 0.1), "peak_bytes": 1}

    monkeypatch.setattr(benchmark, "run_step", run_step)
    out = tmp_path / "results.json"
    with pytest.raises(SystemExit, match="out of time"):
        benchmark.main(["step", *SMALL, f"--images={images}", f"--out={out}"])
    (row,) = json.loads(out.read_text())["step"]["variants"].values()
    assert row["images_per_s"] == 8
    assert "recipe: 8 images/s, measured in" in capsys.readouterr().out


def test_a_long_queue_needs_no_more_images(tmp_path, images):
    """Images that stay on the device would not fit into it."""
    options = benchmark.build_parser().parse_args(["step", *SMALL, f"--images={images}"])
    options.queue_length = 1000
    case = benchmark.step_case(options, tmp_path)
    assert len(Path(case.images).read_text().splitlines()) == 4 * (1 + 8)
    case = benchmark_step.dataclasses.replace(case, off=("bf16",))
    assert benchmark_step.measure(case, "recipe", 1, None)["seconds"][0] > 0


def test_switches_reach_the_configuration_of_the_recipe(tmp_path, images, monkeypatch):
    configs = []
    prepare = benchmark_step.distill.prepare
    monkeypatch.setattr(
        benchmark_step.distill,
        "prepare",
        lambda accelerator, config, name: (
            configs.append(config) or prepare(accelerator, config, name)
        ),
    )
    options = benchmark.build_parser().parse_args(["step", *SMALL, f"--images={images}"])
    case = benchmark.step_case(options, tmp_path)
    extras = ("resident", "cached")
    for number, off in enumerate((("fold", "channels_last", "foreach"), ())):
        folder = tmp_path / f"run{number}"
        also = () if off else extras
        case = benchmark_step.dataclasses.replace(case, off=("bf16", *off), also=also)
        take_step, batches = benchmark_step.recipe_step(case, 1, folder)
        assert take_step(next(batches)).isfinite()
    off, on = configs
    assert (on.data.resident, off.data.resident) == ("on", "off")
    assert (on.teacher.fold_batch_norms, off.teacher.fold_batch_norms) == (True, False)
    assert (on.speed.channels_last, off.speed.channels_last) == (True, False)
    assert (on.speed.foreach, off.speed.foreach) == (True, False)


def test_dense_and_our_loss_are_equal():
    query, bank, positive = benchmark_parts._loss_inputs(20, 64, 8)
    dense = benchmark_parts._dense_loss(query, bank, positive)
    ours = benchmark_parts._our_loss(query, bank, positive)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.timeout(600)
def test_loss_data_and_models_are_measured(tmp_path, images, capsys, monkeypatch):
    """Our loss is measured in a new process, the dense one here, which saves its start."""
    in_new_process = benchmark_parts.measure_loss_in_process

    def measure_loss(kind, *sizes):
        if kind == "dense":
            return benchmark_parts.measure_loss(kind, *sizes)
        return in_new_process(kind, *sizes)

    monkeypatch.setattr(benchmark_parts, "measure_loss_in_process", measure_loss)
    monkeypatch.setattr(benchmark_parts, "STOCK_ARCHITECTURES", ("resnet18",))
    out = tmp_path / "results.json"
    options = [f"--images={images}", f"--out={out}", "--data-sizes", "32"]
    benchmark.main(["loss", "data", "models", *SMALL, *options, "--loss-cases", "64,512,16"])
    results = json.loads(out.read_text())
    (case,) = results["loss"]["cases"]
    assert case["ours"]["gradient_error"] < 1e-4
    assert case["dense"]["value_error"] < 1e-4
    (size,) = results["data"]["results"]
    pipelines = size["core_seconds_per_image"]
    assert len(pipelines) == (4 if measuring.DEVICE.type == "cpu" else 5)
    assert all(seconds > 0 for seconds in pipelines.values())
    assert "resident, in batches on cpu" in pipelines
    assert [row["arch"] for row in results["models"]["results"]] == ["resnet18", "resnet18_mhsa"]
    assert results["models"]["results"][0]["parameters"] == 11_176_512
    assert "torchvision on Pillow | " in capsys.readouterr().out


def test_the_flops_of_a_step_equal_the_published_ones(tmp_path, images):
    """timm's ResNet-18 has 1.82 GMAC at 224 px, ResNet-50 4.11."""
    options = benchmark.build_parser().parse_args(
        ["step", f"--images={images}", "--image-size=224"]
    )
    options.queue_length = 1000
    flops = benchmark.step_flops(benchmark.step_case(options, tmp_path))
    head = 512 * 4096 + 4096 * 256 + 256 * 4096 + 4096 * 256
    assert flops["student"] / 4 == pytest.approx(1.814e9 + 49 * head, rel=0.01)
    head = 2048 * 4096 + 4096 * 256 + 256 * 4096 + 4096 * 256
    assert flops["teacher"] / 4 == pytest.approx(4.089e9 + 49 * head, rel=0.01)
    assert flops["backward"] == pytest.approx(2 * flops["student"], rel=0.05)
    assert flops["loss"] == 4 * 2 * 49 * 1000 * 256


def test_median_and_half_the_interquartile_range():
    assert measuring.median_and_spread([3.0]) == (3.0, 0.0)
    assert measuring.median_and_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 1.5)


def test_an_invalid_case_is_rejected(capsys):
    with pytest.raises(SystemExit):
        benchmark.build_parser().parse_args(["loss", "--loss-cases", "6272,65536"])
    assert "'6272,65536': expected N,K,C" in capsys.readouterr().err
    assert sys.exc_info() == (None, None, None)


def test_stages_are_timed_until_the_device_is_idle(monkeypatch):
    """Work that a stage started counts for it, not for the stage that happens to wait for it."""
    clock, pending = [0.0], [0.0]

    def synchronize():
        clock[0] += pending[0]
        pending[0] = 0.0

    monkeypatch.setattr(measuring, "synchronize", synchronize)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    before = torch.profiler.record_function.__enter__
    with measuring.stage_seconds() as seconds:
        for name, work in (("teacher", 2.0), ("student", 3.0), ("teacher", 4.0)):
            with torch.profiler.record_function(name):
                pending[0] += work
        pending[0] += 9.0  # outside of every stage
        with torch.profiler.record_function("loss"):
            pass
    assert seconds == {"teacher": 6.0, "student": 3.0, "loss": 0.0}
    assert torch.profiler.record_function.__enter__ is before


def test_a_row_is_compared_with_the_matrix_products_of_its_precision():
    rates = {"float32": 1e12, "tf32": 4e12, "bfloat16": 8e12}
    assert measuring.fastest_precision(rates, bf16=True) == "bfloat16"
    assert measuring.fastest_precision(rates, bf16=False) == "tf32"
    assert measuring.fastest_precision({"float32": 1e12}, bf16=True) == "float32"
    split = dict.fromkeys(benchmark_step.STAGES, 0.1) | {"data wait": 0.5}
    row = {"images_per_s": 10.0, "seconds": 1.0, "split": split}
    flops = {"teacher": 2e11, "student": 1e11, "loss": 1e11}
    found = measuring.compare_with_rate(row, flops, "bfloat16", 8e12)
    assert found["flop_per_s"] == pytest.approx(4e12)
    assert found["share_of_matmul_rate"] == pytest.approx(0.5)
    assert found["images_per_s_without_data_wait"] == pytest.approx(20)
    assert found["share_of_matmul_rate_by_stage"]["teacher"] == pytest.approx(2e12 / 0.1 / 8e12)
