"""Several students from Python, with a module as their teacher, and a length in hours."""

import json

import pytest

import pcd_hub
from pcd_hub.models.teacher_sources.module import teacher_from_module
from pcd_hub.train import distill
from tests.train.conftest import run, trace
from tests.train.own_images.test_python import settings  # noqa: F401
from tests.train.students.conftest import ARCHITECTURES, together
from tests.train.teacher.test_loading import Backbone, configured

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_tuple_of_students_gives_a_tuple(settings, tmp_path):  # noqa: F811
    settings |= {"student": ARCHITECTURES, "run.store": False}
    both = pcd_hub.distill(**settings, output_dir=tmp_path / "run")
    assert [one.folder.name for one in both] == list(ARCHITECTURES)
    records = [json.loads((one.folder / "record.json").read_text()) for one in both]
    assert [record["architecture"] for record in records] == list(ARCHITECTURES)
    again = pcd_hub.distill(resume=tmp_path / "run")
    assert isinstance(again, tuple)
    (only,) = pcd_hub.distill(**settings | {"student": ["test_vit"]}, output_dir=tmp_path / "one")
    assert trace(only.folder) == trace(both[1].folder)


def test_a_module_teaches_all_students(several, tmp_path, dropping):
    def train(arch, folder):
        arguments = [*several[1:], f"--student.arch={arch}", f"--run.output-dir={folder}"]
        teacher = teacher_from_module(module, mean=(0.5,) * 3, std=(0.4,) * 3)
        return distill.run(**configured([*arguments, "--data.image-size=64"]), teacher=teacher)

    module = Backbone()
    both = train(",".join(ARCHITECTURES), tmp_path / "run")
    assert both[0].teacher.grid is both[1].teacher.grid
    for architecture in ARCHITECTURES:
        train(architecture, tmp_path / architecture)
        assert trace(tmp_path / "run" / architecture) == trace(tmp_path / architecture)


def test_hours_are_for_all_students_together(several, tmp_path, monkeypatch, caplog):
    measure, measured = distill.seconds_per_step, []
    lengths = ("--run.max-steps", "--run.log-every", "--run.checkpoint-every")
    without = [argument for argument in several if not argument.startswith(lengths)]

    def slow(students):
        measured.append(len(students))
        assert measure(students) > 0
        return 300.0

    monkeypatch.setattr(distill, "seconds_per_step", slow)
    with caplog.at_level("INFO", "pcd_hub"):
        folder = together(without, tmp_path / "run", "--hours=1", "--run.log-every-steps=1")
    run([*several, "--student.arch=test_vit", "--run.max-steps=11"], tmp_path / "vit")
    assert trace(folder / "test_vit") == trace(tmp_path / "vit"), "measuring leaves no trace"
    assert caplog.text.count("settings, and the reason of each") == 1
    distill.main(["--resume", str(folder), "--hours=1"])
    assert measured == [2, 2]
    for architecture in ARCHITECTURES:
        assert len(trace(folder / architecture)) == 22
    changes = json.loads((folder / "test_vit" / "changes.json").read_text())
    assert [(one["from"], one["to"]) for one in changes if "max-steps" in one["what"]] == [(11, 22)]
