"""Time to quality of tiny runs: everything is trained, probed and kept once."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import benchmark
import benchmark_quality
from pcd_hub.errors import ConfigError
from tests.evaluate.drawn_sets import draw_segmentation

TINY = (
    "--student.arch test_resnet --data.image-size 32 --data.num-workers 0 --teacher.image-size None"
    " --method.queue-length 16 --optim.global-batch-size 4 --run.log-every-steps 1 --probe-scenes 0"
    " --speed.precision fp32"
)
PROBE = "--data.image-size 32 --data.num-workers 0 --probe.steps 2"


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """Two variants, two budgets, one seed and an external student."""
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 255, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    teacher = benchmark.save_random_teacher("test_resnet", tmp_path / "teacher")
    weights = tmp_path / "peer.pth"
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    external = tmp_path / "external.json"
    entry = {"name": "peer", "minutes": 3, "weights": str(weights), "architecture": "test_resnet"}
    external.write_text(json.dumps([entry]))
    return [
        "quality",
        *("--images", str(images), "--teacher", f"local-dir:{teacher}"),
        *("--probe-data", str(draw_segmentation(tmp_path / "labelled"))),
        *("--config", "quickstart", "--options", TINY, "--probe-options", PROBE),
        *("--variant", "pooled=--method.targets pooled", "--steps", "2", "4", "--seeds", "0"),
        *("--probe-seeds", "0", "1", "--baselines", "random:test_resnet"),
        *("--external", str(external), "--out", str(tmp_path / "out")),
    ]


def run_here(module, words, log):
    """Run a module in this process, which saves the start of a new one."""
    importlib.import_module(module).main(list(words))
    return {"wall_minutes": 1.0, "other_cores": 0.3}


def test_runs_are_trained_probed_and_kept(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_quality, "_run_module", run_here)
    benchmark.main([*arguments, "--step-seconds", "pooled=6"])
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "quality.json").read_text())
    rows = results["rows"]
    assert [(row["variant"], row.get("steps")) for row in rows] == [
        *[("plain", 2), ("pooled", 2), ("plain", 4), ("pooled", 4)],
        ("peer", None),
    ]
    assert [row["minutes"] for row in rows if row["variant"] == "pooled"] == [0.2, 0.4]
    assert all(0 < row["minutes"] < 1 for row in rows if row["variant"] == "plain")
    for row in rows:
        ((scores,),) = [row["mean_iou"].values()]
        assert len(scores) == 2
        assert all(0 < score < 100 for score in scores)
    assert "| pooled | 0.2 |" in printed
    assert "at 6 s per step, as given" in printed
    assert "| peer | 3 |" in printed
    assert "disturbed: others used 0.3 cores" in printed
    assert f"{(tmp_path / 'out')}" in results["command"]

    def unexpected(*_):
        raise AssertionError("a finished run or probe must not start again")

    monkeypatch.setattr(benchmark_quality, "_run_module", unexpected)
    benchmark.main(arguments)
    again = json.loads((tmp_path / "out" / "quality.json").read_text())["rows"]
    assert [row["mean_iou"] for row in again] == [row["mean_iou"] for row in rows]


def test_a_stopped_run_is_continued(tmp_path, monkeypatch):
    run = benchmark_quality.Run(variant="plain", budget="--run.max-steps=4", seed=0, options=("x",))
    folder = tmp_path / run.name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step_00000002.pt").touch()
    (folder / "config.json").write_text('{"optim": {"global_batch_size": 6}}')
    lines = [{"step": step, "images_per_s": 2.0} for step in (0, 1, 2, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    started = []
    monkeypatch.setattr(
        benchmark_quality,
        "_run_module",
        lambda module, words, log: started.append(words) or {"wall_minutes": 1, "other_cores": 0.5},
    )
    times = benchmark_quality.train(run, folder)
    assert started == [[f"--resume={folder}"]]
    assert (times["steps"], times["minutes"]) == (4, pytest.approx(4 * 6 / 2 / 60))
    assert len(benchmark_quality.train(run, folder)["parts"]) == 2, "both parts are kept"


def test_a_run_with_other_options_is_another_run():
    names = {
        benchmark_quality.Run(variant="plain", budget="--hours=1", seed=seed, options=options).name
        for seed in (0, 1)
        for options in ((), ("--teacher", "a"), ("--teacher", "b"))
    }
    assert len(names) == 6


def test_minutes_are_a_length_in_hours():
    options = benchmark_quality.build_parser().parse_args(
        [
            *("--images", "a", "--teacher", "t", "--probe-data", "d", "--out", "o"),
            *("--variant", "cache=--teacher.cache=auto", "--minutes", "3", "--seeds", "1", "2"),
        ]
    )
    runs = benchmark_quality.planned_runs(options)
    assert [(run.variant, run.seed) for run in runs] == [
        *[("plain", 1), ("cache", 1), ("plain", 2), ("cache", 2)]
    ]
    assert {run.budget for run in runs} == {"--hours=0.05"}
    assert runs[1].options[-1] == "--teacher.cache=auto"


@pytest.mark.parametrize("content", ["{", '["peer"]', '[{"name": "peer", "minutes": 1}]', "{}3"])
def test_a_damaged_list_of_external_students_is_refused(tmp_path, content):
    file = tmp_path / "external.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="expected a JSON list of objects with name, minutes"):
        benchmark_quality.read_external(file)


def test_a_run_is_a_process_and_the_log_of_a_failed_one_is_shown(tmp_path):
    used = benchmark_quality._run_module("pcd_hub", ["--help"], tmp_path / "run")
    assert used["wall_minutes"] > 0
    assert used["other_cores"] >= 0
    assert "usage: pcd-hub" in (tmp_path / "run.log").read_text()
    with pytest.raises(ConfigError, match=r"(?s)ends with:\n.*no configuration and no images"):
        benchmark_quality._run_module("pcd_hub.train.distill", ["nowhere"], tmp_path / "run")


def test_a_variant_needs_a_name(capsys):
    with pytest.raises(SystemExit):
        benchmark_quality.build_parser().parse_args(["--variant", "--teacher.cache auto"])
    assert "expected NAME=VALUE" in capsys.readouterr().err


def test_a_file_of_weights_needs_its_architecture(tmp_path):
    weights = tmp_path / "peer.pth"
    weights.touch()
    run = benchmark_quality.Run(variant="peer", budget="", seed=0, weights=str(weights))
    with pytest.raises(ConfigError, match="expected its architecture"):
        benchmark_quality.external_model(run, Path("unused"))
