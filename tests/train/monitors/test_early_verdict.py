"""When the verdict of a run is logged, and what is measured for it."""

import json
import logging

import pytest
import torch

from pcd_hub.method.metrics import content_cka, own_pixel_retrieval
from pcd_hub.method.queue import KeyQueue
from pcd_hub.train import distill
from pcd_hub.train.monitors.early_verdict import EarlyVerdict
from tests.train.conftest import trace
from tests.train.monitors.test_verdict import lines

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, logger="pcd_hub")
    return lambda: [(r.levelname, r.getMessage()) for r in caplog.records]


def test_it_is_logged_at_5_and_10_percent_and_when_it_changes(tmp_path, logged):
    early = EarlyVerdict(tmp_path / "metrics.jsonl", total_steps=200)
    for line in [*lines(30), *lines(60, pixel_top1=0.5)[30:]]:
        early.add(int(line["step"]), line)
    said = [text.split(":")[0] + text.split(":")[1] for _, text in logged()]
    assert said[:2] == ["step 10 of 200, student too early", "step 20 of 200, student too early"]
    assert len(said) == 3
    assert "of 200, student learning" in said[2]


def test_a_fault_is_a_warning_at_once_and_a_resumed_run_knows_its_lines(tmp_path, logged):
    file = tmp_path / "metrics.jsonl"
    known = lines(3, new_keys=0.0)
    file.write_text("".join(json.dumps(line) + "\n" for line in known))
    EarlyVerdict(file, total_steps=200).add(3, {"new_keys": 0.0})
    ((level, text),) = logged()
    assert level == "WARNING"
    assert text.startswith(
        "warning: step 4 of 200, student: flat: the key queue received no new keys"
    )


def test_a_fault_is_not_taken_back_without_a_sign_of_learning(tmp_path, logged):
    early = EarlyVerdict(tmp_path / "metrics.jsonl", total_steps=200)
    faulty = lines(10, gradient_norm=0.001)
    healthy = lines(80)[10:]
    for line in [*faulty, *healthy]:
        early.add(int(line["step"]), line)
    assert {text.split(":")[2] for _, text in logged()} == {" flat"}
    for line in lines(120, pixel_top1=0.5)[80:]:
        early.add(int(line["step"]), line)
    assert early.history[-1]["kind"] == "learning"


def test_a_resumed_run_keeps_what_was_logged_and_repeats_nothing(tmp_path, logged):
    early = EarlyVerdict(tmp_path / "metrics.jsonl", total_steps=200)
    known = lines(30)
    for line in known:
        early.add(int(line["step"]), line)
    assert [one["step"] for one in early.history] == [10, 20]
    assert early.history[0]["kind"] == "too early"
    assert early.history[0]["is_bad"] is False
    again = EarlyVerdict(tmp_path / "metrics.jsonl", total_steps=200)
    again.load_state_dict(json.loads(json.dumps(early.state_dict())))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in known))
    for line in lines(60, pixel_top1=0.5)[30:]:
        again.add(int(line["step"]), line)
    assert [one["kind"] for one in again.history] == ["too early", "too early", "learning"]
    assert len(logged()) == 3


def test_a_long_run_is_measured_20_times_in_its_first_tenth(tmp_path):
    early = EarlyVerdict(tmp_path / "metrics.jsonl", total_steps=6000)
    assert sum(map(early.is_due, range(6000))) == 20


def test_content_cka_is_0_for_unrelated_and_1_for_equal_vectors():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 8, 16, 32, generator=generator)
    place = 5 * torch.randn(8, 1, 32, generator=generator)
    assert content_cka(one, one + place) == pytest.approx(1)
    assert abs(content_cka(one + place, other + place) or 0) < 0.1, "the place does not count"
    assert content_cka(torch.zeros_like(one), one) is None


def test_own_pixel_retrieval_counts_the_same_place_before_other_pixels_and_keys():
    maps = torch.eye(6)[None, :, :4]
    places = torch.arange(4)
    assert own_pixel_retrieval(maps, maps, places, torch.eye(6)[4:]) == 1
    assert own_pixel_retrieval(maps.roll(1, 2), maps, places, torch.eye(6)[4:]) == 0
    assert own_pixel_retrieval(maps + 0.5, maps, places, torch.ones(1, 6)) == 0


def test_a_run_logs_the_metrics(tiny, tmp_path):
    distill.main([*tiny, f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"])
    for line in trace(tmp_path / "run"):
        assert 2 < line["pixel_rank"] < 16
        assert 0 < line["pixel_cosine"] < 0.99
        assert 0.9 < line["key_cosine"] < 1, "the teacher is random"
        assert line["gradient_norm"] > 0
        assert line["pixel_chance"] == pytest.approx(1 / (1 + 24))


@pytest.mark.parametrize(
    "options",
    [
        ["--method.views=cross"],
        ["--method.loss=cosine_smooth_l1"],
        ["--teacher.cache=CACHE", "--data.view-epochs=1"],
    ],
)
def test_the_targets_are_those_of_the_teacher(tiny, tmp_path, options, monkeypatch):
    measured, add = [], EarlyVerdict.add

    def keep(self, step, metrics, *others):
        measured.append(metrics)
        return add(self, step, metrics, *others)

    monkeypatch.setattr(EarlyVerdict, "add", keep)
    options = [option.replace("CACHE", str(tmp_path / "cache")) for option in options]
    distill.main([*tiny, *options, f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"])
    first, *others = measured
    assert first["target_cosine"] > 0.999
    assert not any("target_cosine" in line for line in [*others, *trace(tmp_path / "run")])


def test_targets_of_other_images_are_named_in_the_first_step(tiny, tmp_path, monkeypatch, logged):
    monkeypatch.setattr(distill, "pair_views", lambda target, config: -target)
    distill.main([*tiny, f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"])
    level, text = next(each for each in logged() if "step 1 of" in each[1])
    assert level == "WARNING"
    assert "the targets are not the teacher's feature maps of the same images" in text


def test_a_queue_that_receives_no_keys_is_named(tiny, tmp_path, monkeypatch, logged):
    monkeypatch.setattr(KeyQueue, "push", lambda self, keys: None)
    distill.main([*tiny, f"--run.output-dir={tmp_path / 'run'}", "--run.no-store"])
    said = [text for _, text in logged()]
    assert any("the key queue received no new keys" in text for text in said)
    assert any("likely cause: the teacher has random weights" in text for text in said), "it has"
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    told = [
        f"step {one['step']} of 6, test_resnet: {one['kind']}: {one['words']}"
        for one in record["verdicts"]
    ]
    verdicts = [text.removeprefix("warning: ") for text in said]
    assert told == [text.partition("; likely")[0] for text in verdicts if "of 6, test_" in text]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "the last early verdict, at step" in report
    assert "## Early verdict" in report
