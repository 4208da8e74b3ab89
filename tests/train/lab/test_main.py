"""Order, skipping, resuming and failures of a list of runs."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pcd_hub.errors import ConfigError, DataError
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.train.lab import jobs, main
from pcd_hub.train.lab.jobs import read_state, row_folder
from pcd_hub.weights.catalogue import finished_export
from tests.train.lab.conftest import changed


@pytest.fixture
def run(tiny_list, tmp_path):
    def call(*arguments):
        main.main(
            [
                str(tiny_list),
                f"--labelled={tmp_path}",
                f"--output-dir={tmp_path / 'out'}",
                *arguments,
            ]
        )
        return tmp_path / "out"

    return call


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Return the jobs that are started, as ROW/seed-SEED/JOB."""
    found, call = [], jobs._call

    def watched(job, resume):
        found.append("/".join(job.folder.parts[-3:]) + " again" * bool(resume))
        return call(job, resume)

    monkeypatch.setattr(jobs, "_call", watched)
    return found


def test_all_rows_run_with_the_first_seed_and_what_is_done_is_skipped(run, started):
    out = run()
    one = [
        "random/seed-{}/discs",
        *(f"{row}/seed-{{}}/{job}" for row in ("pcd", "pooled") for job in ("train", "discs")),
    ]
    assert started == [job.format(seed) for seed in (0, 1) for job in one]
    config = json.loads((out / "rows/pooled/seed-1/train/config.json").read_text())
    assert (config["method"]["targets"], config["run"]["seed"]) == ("pooled", 1)
    assert config["run"]["store"] is False
    table = json.loads((out / "table.json").read_text())
    (scores,) = table["evaluations"]
    assert scores["rows"]["pooled"]["metrics"]["mean IoU"]["difference"]["seeds"] == [0, 1]
    by_row = {row["name"]: row for row in table["rows"]}
    assert by_row["pooled"]["options"] == "method.targets pooled"
    assert (by_row["pcd"]["steps"], by_row["pcd"]["images_seen"]) == (2, 16)
    assert by_row["pcd"]["seconds_per_step"] > 0
    random = scores["rows"]["random"]["metrics"]["mean IoU"]["by_seed"]
    assert random["0"] != random["1"], "other random weights for each seed"
    started.clear()
    run("--seeds", "0,1,2", "--only", "pcd")
    assert started == ["pcd/seed-2/train", "pcd/seed-2/discs"]


def test_a_row_that_fails_is_shown_as_failed_and_the_others_run(run, started, tiny_list, capsys):
    broken = {"teacher": {"image_size": 16}, "student": {"weights": "local-dir:missing"}}
    changed(tiny_list, rows={"broken": broken}, seeds=[0])
    out = run("--only", "broken", "pcd")
    assert started == ["pcd/seed-0/train", "pcd/seed-0/discs", "broken/seed-0/train"]
    state = read_state(out / "rows/broken/seed-0/train")
    assert state["state"] == "failed"
    assert "missing" in state["reason"]
    text = (out / "table.md").read_text()
    assert text.rstrip() in capsys.readouterr().out
    assert "failed: train: " in text
    assert "seed 0 failed: training: " in text
    rows = json.loads((out / "table.json").read_text())["evaluations"][0]["rows"]
    assert rows["broken"]["metrics"] == {}
    started.clear()
    run("--only", "broken")
    assert not started, "it stays failed"
    run("--only", "broken", "--retry-failed")
    assert started == ["broken/seed-0/train"]
    del broken["student"]
    changed(tiny_list, rows={"broken": broken})
    run("--only", "broken")
    assert started == ["broken/seed-0/train"] * 2 + ["broken/seed-0/discs"], "other options"
    assert "failed" not in (out / "table.md").read_text().split("±:")[0]


def test_an_unexpected_error_is_recorded_with_its_traceback(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory\nat 0x1")

    monkeypatch.setattr("pcd_hub.train.distill.run", fail)
    out = run("--only", "pcd", "--seeds", "0")
    state = read_state(out / "rows/pcd/seed-0/train")
    assert state["reason"] == "RuntimeError: out of memory"
    assert "Traceback" in state["traceback"]
    assert read_state(out / "rows/pcd/seed-0/discs") == {}, "nothing is evaluated"


KILLED = """
import os, signal, sys
from pcd_hub.train.lab import main
{patch}
main.main(sys.argv[1:])
"""
AFTER_A_CHECKPOINT = """
from pcd_hub.train.run_folder import checkpoints
save = checkpoints.Checkpoints.save
def killed(self, *arguments):
    save(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)
checkpoints.Checkpoints.save = killed
"""
IN_AN_EVALUATION = """
from pcd_hub.train.frozen import segmentation_probe
segmentation_probe.save_sample_overlays = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("patch", "first", "where"),
    [
        (AFTER_A_CHECKPOINT, "pcd/seed-0/train again", "train"),
        (IN_AN_EVALUATION, "pcd/seed-0/discs", "discs"),
    ],
)
def test_a_killed_lab_continues_where_it_was(
    patch, first, where, run, started, tiny_list, tmp_path
):
    arguments = [str(tiny_list), f"--labelled={tmp_path}", "--only", "pcd", "--seeds", "0"]
    command = [sys.executable, "-c", KILLED.format(patch=patch), *arguments]
    out = tmp_path / "out"
    done = subprocess.run(
        [*command, f"--output-dir={out}"], check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL
    assert read_state(out / "rows/pcd/seed-0" / where)["state"] == "started"
    run("--only", "pcd", "--seeds", "0")
    assert started[0] == first
    assert read_state(out / "rows/pcd/seed-0/discs")["state"] == "done"
    if where == "train":
        whole = tmp_path / "whole"
        main.main([*arguments, "--only", "pcd", f"--output-dir={whole}"])
        assert _scores(out) == _scores(whole)


def _scores(out):
    return Evaluation.load(out / "rows/pcd/seed-0/discs").scores.popitem()[1]


def test_a_signal_saves_the_step_and_the_same_command_continues(run, started, monkeypatch):
    from pcd_hub.train.run_folder.checkpoints import Checkpoints
    from pcd_hub.train.signals import StoppedRun

    save = Checkpoints.save

    def signalled(self, *arguments):
        save(self, *arguments)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", signalled)
    with pytest.raises(StoppedRun, match="continue with the same command"):
        run("--only", "pcd", "--seeds", "0")
    monkeypatch.setattr(Checkpoints, "save", save)
    run("--only", "pcd", "--seeds", "0")
    assert started == ["pcd/seed-0/train", "pcd/seed-0/train again", "pcd/seed-0/discs"]


def test_other_options_than_those_of_finished_runs_are_refused(run, started, tiny_list):
    run("--only", "pcd", "random", "--seeds", "0")
    changed(tiny_list, base={"optim.weight_decay": 0.5})
    started.clear()
    with pytest.raises(
        ConfigError,
        match=r"pcd/seed-0/train was run with --optim.weight-decay 0.05, found 0.5; rest",
    ):
        run("--only", "pcd", "--seeds", "0")
    changed(tiny_list, base={"optim.weight_decay": 0.05, "run.log_every_steps": 7})
    run("--only", "pcd", "--seeds", "0")
    changed(tiny_list, rows={"random": {"model": "random:test_vit"}})
    with pytest.raises(
        ConfigError, match="random/seed-0/discs was run with --model random:test_resnet, fo"
    ):
        run("--only", "random", "--seeds", "0")
    assert not started


def test_a_row_may_start_from_the_student_of_another(run, tiny_list):
    changed(tiny_list, rows={"again": {"student.weights": "row:pcd"}})
    with pytest.raises(
        ConfigError, match="row again starts from row pcd, which is not finished with seed 0; add"
    ):
        run("--only", "again", "--seeds", "0")
    out = run("--only", "pcd", "again", "--seeds", "0")
    start = finished_export(row_folder(out, "pcd", 0) / "train")
    record = json.loads((row_folder(out, "again", 0) / "train/record.json").read_text())
    assert record["config"]["student"]["weights"] == f"local-dir:{start}"
    run("--only", "again", "--seeds", "0")


def test_mistakes_are_found_before_the_first_step(run, started, tiny_list, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="nowhere"):
        run(f"--images={tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="elsewhere"):
        run(f"--labelled={tmp_path / 'elsewhere'}")
    with pytest.raises(ValueError, match="no teacher folder nowhere; expected one"):
        run("--teacher=local-dir:nowhere")
    with pytest.raises(ConfigError, match="--only pdc; did you mean 'pcd'"):
        run("--only", "pdc")
    with pytest.raises(ConfigError, match="elsewhere has no results; expected the --output-dir"):
        run("--table", f"--output-dir={tmp_path / 'elsewhere'}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE 2: expected one process"):
        run()
    assert not started


def test_a_second_lab_in_the_folder_is_refused(run, tmp_path):
    (tmp_path / "out/rows").mkdir(parents=True)
    code = f"""
import time
from filelock import FileLock
with FileLock({str(tmp_path / "out" / ".lock")!r}):
    print("locked", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match="another process is running in"):
            run("--seeds", "0")
        other.kill()
        time.sleep(0.1)
    assert "not started" in (run("--table") / "table.md").read_text(), "the table needs no lock"


def test_a_supervised_row_has_the_views_and_length_of_the_base(run, tiny_list, tmp_path):
    lines = [f"{index},{'even' if index % 2 == 0 else 'odd'}" for index in range(64)]
    (tmp_path / "index.csv").write_text("\n".join(["file,class", *lines]) + "\n")
    method = {"loss": "cross_entropy", "labels": "index.csv"}
    changed(tiny_list, rows={"supervised": {"recipe": "pretrain", "method": method}})
    out = run("--only", "supervised", "pcd", "--seeds", "0")
    one, other = (
        json.loads((row_folder(out, row, 0) / "train/record.json").read_text())
        for row in ("supervised", "pcd")
    )
    assert one["config"]["encoder"]["arch"] == "test_resnet"
    assert one["config"]["data"].items() <= other["config"]["data"].items()
    assert one["config"]["optim"].items() <= other["config"]["optim"].items()
    assert (one["steps"], one["images_seen"]) == (other["steps"], other["images_seen"]) == (2, 16)
    table = json.loads((out / "table.json").read_text())
    row = table["evaluations"][0]["rows"]["supervised"]["metrics"]["mean IoU"]
    assert row["difference"]["verdict"] == "one seed, not judged"
    options = {row["name"]: row["options"] for row in table["rows"]}["supervised"]
    expected = f"method.loss cross_entropy, method.labels {tmp_path / 'index.csv'}"
    assert options[:100] == expected[:100], "a long path is shortened"
    (tmp_path / "index.csv").write_text("\n".join(["file,class", *lines[1:]]) + "\n")
    with pytest.raises(DataError, match=r"index.csv has no class of 0 \(1 of 64 images\)"):
        run("--only", "supervised", "--seeds", "1")


def test_a_full_disk_is_said_in_one_line(run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jobs, "_write_state", full)
    with pytest.raises(ConfigError, match=r"out \(No space left on device\); free some space, th"):
        run("--only", "random", "--seeds", "0")
