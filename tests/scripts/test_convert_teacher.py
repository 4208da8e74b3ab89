import hashlib
import json

import pytest
import torch

import convert_teacher
from pcd_hub.models.teacher_loading import load_teacher
from tests.models.test_teachers import moco_file, resnet50_file

IMAGES = torch.rand(2, 3, 64, 64)


def test_a_converted_teacher_is_equal_and_has_its_record(tmp_path, capsys):
    file, out = moco_file(tmp_path / "m.pth"), tmp_path / "teachers" / "moco"
    arguments = ["mocov3:test_resnet", str(file), str(out), "--license", "cc-by-nc-4.0"]
    assert convert_teacher.main(arguments) == 0
    assert f"--teacher.source local-dir:{out}" in capsys.readouterr().out
    one = load_teacher(f"mocov3:test_resnet:{file}", image_size=64)
    other = load_teacher(f"local-dir:{out}", image_size=64)
    assert torch.equal(one(IMAGES), other(IMAGES))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert other.facts.license == "cc-by-nc-4.0"
    assert other.facts.origin == {
        "layout": "mocov3:test_resnet",
        "source_file": "m.pth",
        "source_sha256": sha256,
    }
    record = json.loads((out / "teacher.json").read_text())
    assert record["source_bytes"] == file.stat().st_size
    assert record["head"] == "Linear-BatchNorm1d-ReLU-Linear-BatchNorm1d"
    assert sorted(path.name for path in out.parent.iterdir()) == ["moco"]
    file.unlink()
    assert load_teacher(f"local-dir:{out}", image_size=64).num_channels == 32


@pytest.mark.parametrize("layout", ["swav_r50", "dino_r50"])
def test_the_layouts_of_the_paper_convert(tmp_path, layout):
    file, out = resnet50_file(tmp_path / "file", layout), tmp_path / "out"
    facts = convert_teacher.convert(layout, file, out, license="not stated")
    assert facts.architecture == "resnet50"
    assert (facts.head == "none") == (layout == "dino_r50")
    assert load_teacher(f"local-dir:{out}", image_size=64).facts.sha256 == facts.sha256


def test_a_wrong_file_is_a_one_line_error_and_leaves_nothing_behind(tmp_path, capsys):
    file = resnet50_file(tmp_path / "file", "swav_r50")
    for layout, message in (
        ("mocov3_r50", "no entry 'state_dict'"),
        ("dino_r50", "does not fit resnet50: 0 keys missing"),
        ("moco_r50", "unknown checkpoint layout 'moco_r50'; did you mean 'mocov3_r50'"),
        ("resnet", "resnet needs an architecture, as in resnet:resnet50"),
    ):
        assert convert_teacher.main([layout, str(file), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_existing_folder_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other").write_text("content")
    file = moco_file(tmp_path / "m.pth")
    assert convert_teacher.main(["mocov3:test_resnet", str(file), str(tmp_path / "out")]) == 2
    assert "out exists: expected a new folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "other").read_text() == "content"
