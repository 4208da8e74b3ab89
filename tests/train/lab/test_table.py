"""Numbers of the table, from files written by hand."""

import json

import pytest

from pcd_hub.errors import DataError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train.lab.options import parse_lab
from pcd_hub.train.lab.plan import read_plan
from pcd_hub.train.lab.table import save_table
from tests.train.lab.conftest import changed


@pytest.fixture
def plan(tiny_list):
    changed(tiny_list, seeds=[0, 1, 2])
    return read_plan(tiny_list, parse_lab([str(tiny_list)])[0])


def done(folder, state="done", **facts):
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.with_name(f"{folder.name}.json").write_text(json.dumps({"state": state, **facts}))


def score(out, row, seed, values, **changes):
    """Write the results of a finished row: one value per seed of the probe."""
    place = out / "rows" / row / f"seed-{seed}"
    done(place / "train")
    done(place / "discs")
    facts = {"task": "probe", "dataset": "set/val", "protocol": "as ever", "images": 5} | changes
    Evaluation(
        **facts,
        command="",
        seeds=tuple(range(len(values))),
        units={"mean IoU": "%"},
        scores={f"local-dir:{row}{seed}": {"mean IoU": values}},
    ).save(place / "discs")


def cells(text, row):
    """Return the cells of a row in the last table."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in lines[-1].strip("|").split("|")][1:]


def test_means_and_paired_differences(plan, tmp_path):
    for seed, value in enumerate((10.0, 11.0, 12.0)):
        score(tmp_path, "pcd", seed, (value - 1, value + 1))
        score(tmp_path, "pooled", seed, (value - 2.0 - seed / 10,))
    score(tmp_path, "random", 0, (3.0,))
    text = save_table(plan, tmp_path)
    assert cells(text, "pcd") == ["11.00 ± 1.00", ""]
    assert cells(text, "pooled") == ["8.90 ± 0.90", "-2.10 ± 0.10"]
    assert cells(text, "random") == ["3.00 (n = 1)", "-7.00 (one seed, not judged)"]
    assert text + "\n" == (tmp_path / "table.md").read_text()
    assert "**discs**: probe on set/val, 5 images. as ever." in text
    found = json.loads((tmp_path / "table.json").read_text())
    row = found["evaluations"][0]["rows"]["pooled"]["metrics"]["mean IoU"]
    assert row["by_seed"] == pytest.approx({"0": 8.0, "1": 8.9, "2": 9.8})
    assert row["difference"]["half_width"] == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert row["difference"]["verdict"] == "lower"


def test_a_difference_within_noise_is_named(plan, tmp_path):
    for seed, (value, other) in enumerate([(10.0, 11.0), (11.0, 10.5), (12.0, 12.9)]):
        score(tmp_path, "pcd", seed, (value,))
        score(tmp_path, "pooled", seed, (other,))
    assert cells(save_table(plan, tmp_path), "pooled")[1] == "+0.47 ± 0.84 (within noise)"


@pytest.mark.parametrize("failing", ["train", "discs"])
def test_a_failed_seed_is_never_averaged_away(plan, tmp_path, failing):
    for seed in range(3):
        score(tmp_path, "pcd", seed, (10.0 + seed,))
        score(tmp_path, "pooled", seed, (20.0 + seed,))
    place = tmp_path / "rows/pooled/seed-1"
    done(place / failing, "failed", reason="loss is not finite")
    if failing == "train":
        (place / "discs.json").unlink()
    text = save_table(plan, tmp_path)
    why = f"failed: {'training: ' * (failing == 'train')}loss is not finite"
    assert cells(text, "pooled") == [f"seed 0 20.00, seed 1 {why}, seed 2 22.00", ""]
    assert f"done (seeds 0, 2), failed: {failing}: loss is not finite (seed 1)" in text
    found = json.loads((tmp_path / "table.json").read_text())["evaluations"][0]["rows"]["pooled"]
    assert "mean" not in found["metrics"]["mean IoU"]
    assert found["failed"] == {"1": why.removeprefix("failed: ")}


def test_a_failed_baseline_is_compared_with_nothing(plan, tmp_path):
    score(tmp_path, "pcd", 0, (10.0,))
    score(tmp_path, "pooled", 0, (20.0,))
    done(tmp_path / "rows/pcd/seed-1/train", "failed", reason="why")
    assert cells(save_table(plan, tmp_path), "pooled") == ["20.00 (n = 1)", ""]


@pytest.mark.parametrize("other", [{"protocol": "another"}, {"protocol_version": 2}])
def test_scores_under_another_protocol_are_not_compared(plan, tmp_path, other):
    score(tmp_path, "pcd", 0, (10.0,))
    score(tmp_path, "pooled", 0, (20.0,), **other)
    text = save_table(plan, tmp_path)
    assert cells(text, "pooled") == ["seed 0 failed: scored under another protocol", ""]
    assert "as ever" in text


def test_costs_options_and_commits_come_from_the_records(plan, tmp_path):
    for row, speeds, commit in (("pcd", (8, 16, 16), "a" * 40), ("pooled", (4,), "b" * 40)):
        score(tmp_path, row, 0, (1.0,))
        training = tmp_path / "rows" / row / "seed-0/train"
        training.mkdir()
        lines = [json.dumps({"images_per_s": speed}) for speed in speeds]
        (training / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        record = {
            "steps": 1800,
            "images_seen": 14400,
            "code": {"commit": commit, "dirty": False},
            "config": {"optim": {"global_batch_size": 8}},
        }
        (training / "record.json").write_text(json.dumps(record))
    (tmp_path / "rows/pooled/seed-0/train.yaml").write_text(
        "method: {targets: pooled, loss: similarity_kl}"
    )
    text = save_table(plan, tmp_path)
    lines = [line for line in text.splitlines() if line.startswith(("| pcd", "| pooled"))]
    assert (
        lines[0]
        == "| pcd |  | done (seed 0), not started (seeds 1, 2) | 1,800 | 14,400 | 0.5 | 0.25 |"
    )
    assert "method.loss similarity_kl" in lines[1], "as it was run, not as the list says today"
    assert lines[1].endswith("| 1,800 | 14,400 | 2 | 1.00 |")
    assert "different commits: aaaaaaaaaaaa, bbbbbbbbbbbb." in text


def test_a_damaged_state_is_named(plan, tmp_path):
    done(tmp_path / "rows/pcd/seed-0/train", "lost")
    with pytest.raises(DataError, match="train.json is not the state of a job; remove it to run"):
        save_table(plan, tmp_path)
