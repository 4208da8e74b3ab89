import json

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.report.page.run_folder import Notes, read_run, write_notes
from tests.report.page.making import NOTES, finished_run


def test_everything_is_read_again(tmp_path):
    files = read_run(finished_run(tmp_path / "run"))
    assert files.notes == NOTES
    assert files.record.name == "test_resnet.pcd"
    assert len(files.metrics) == 20
    assert not files.damaged
    assert not files.scores["held_out"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is missing; expected the folder of a finished run"),
        (lambda path: path.write_text("x"), "is a file; expected the folder of a finished run"),
        (lambda path: path.mkdir(), "has no record.json; expected the folder of a finished run"),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text("{}")),
            "is not finished: it has no record.json; `pcd-hub distill --resume .*run` continues",
        ),
        (
            lambda path: (path.mkdir(), (path / "pcd_manifest.json").write_text("{}")),
            "is an exported weight, not a run; expected the folder that holds it",
        ),
        (
            lambda path: [finished_run(path / name) for name in ("a", "b")],
            "holds 2 runs; name them: .*run/a .*run/b",
        ),
        (
            lambda path: (path.mkdir(), (path / "record.json").write_text("[]")),
            "record.json is not the record of a finished distillation: it is not an object; name",
        ),
        (
            lambda path: (path.mkdir(), (path / "record.json").write_text('{"steps": 4}')),
            "is not the record of a finished distillation: the record has no 'architecture'",
        ),
        (
            lambda path: (path.mkdir(), (path / "record.json").write_bytes(b"\xff{" * 1000)),
            "is not the record of a finished distillation: record.json is not strict JSON",
        ),
    ],
)
def test_other_folders_are_refused_in_one_line(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(ConfigError, match=message) as caught:
        read_run(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_damaged_lines_are_counted_and_the_others_kept(tmp_path):
    folder = finished_run(tmp_path / "run")
    lines = ['{"step": 1, "loss": NaN, "lr": 0.5}', "[" * 5000, "[]", '{"loss": 1}', '{"step": 2']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    files = read_run(folder)
    assert files.metrics == [{"step": 1.0, "lr": 0.5}]
    assert files.damaged == ["4 of 5 lines of metrics.jsonl are damaged"]


@pytest.mark.parametrize(
    "content", ["{}", "[3]", '{"num_images": 3}', "nothing", '[{"option": "a"}]']
)
def test_damaged_side_files_are_named_and_left_out(tmp_path, content):
    folder = finished_run(tmp_path / "run")
    for name in ("survey.json", "decisions.json"):
        (folder / name).write_text(content)
    files = read_run(folder)
    assert files.survey is None
    assert files.decisions == ()
    assert any(line.startswith("survey.json cannot be read: ") for line in files.damaged)


@pytest.mark.parametrize(
    "notes",
    [
        {"features": 3, "receptive_field": {"path": 1}, "receptive_sides": "x", "warnings": 7},
        {"features": {"path": "a", "rows": 4, "columns": [], "images": ""}},
        {"receptive_sides": [None, 1e400, True]},
    ],
)
def test_damaged_notes_are_left_out(tmp_path, notes):
    folder = finished_run(tmp_path / "run")
    (folder / "report.json").write_text(json.dumps(notes).replace("Infinity", "1e300"))
    read = read_run(folder).notes
    assert read.features is None
    assert read.warnings == ()


def test_notes_of_nothing(tmp_path):
    write_notes(tmp_path, Notes())
    folder = finished_run(tmp_path / "run", notes=Notes())
    assert read_run(folder).notes == Notes()
