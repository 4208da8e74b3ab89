"""Several feature maps of the student: what a run trains, resumes, scores and refuses."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pcd_hub.errors import ConfigError, StudentError
from pcd_hub.method.resampling import resample
from pcd_hub.train.distillation import building
from pcd_hub.train.held_out import scorer
from tests.train.conftest import run, trace

pytestmark = pytest.mark.usefixtures("no_pictures")

TWO = ["--data.image-size=64", "--teacher.image-size=96", "--method.feature-maps=2"]


@pytest.fixture
def compared(monkeypatch) -> list[tuple[torch.Size, torch.Size]]:
    """Return the shapes of student and teacher map of every call of the loss."""
    seen = []
    original = building.pixel_info_nce

    def loss(student, teacher, negatives, *, temperature):
        seen.append((student.shape, teacher.shape))
        return original(student, teacher, negatives, temperature=temperature)

    monkeypatch.setattr(building, "pixel_info_nce", loss)
    return seen


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--method.loss=cosine_smooth_l1", "--method.head=linear"],
        ["--method.loss=similarity_kl", "--method.temperature=0.07"],
        ["--teacher.cache=auto"],
        ["--data.early-image-size=32", "--data.early-share=0.5"],
        ["--data.held-out=0.1", "--run.measure-every-steps=3"],
    ],
)
def test_a_run_on_two_maps_learns_and_resumes(tiny, tmp_path, caplog, options):
    arguments = [*tiny, *TWO, *options, "--run.max-steps=12", "--run.checkpoint-every-steps=6"]
    folder = run(arguments, tmp_path / "run", "--run.no-store")
    whole = trace(folder)
    assert sum(line["loss"] for line in whole[-3:]) < sum(line["loss"] for line in whole[:3])
    assert "the targets are not the teacher's" not in caplog.text
    (folder / "checkpoints" / "step_00000012.pt").unlink()
    run(arguments, folder, "--run.resume", "--run.no-store")
    assert trace(folder) == whole


def test_each_map_is_compared_with_the_teacher_at_its_size(tiny, tmp_path, compared):
    folder = run([*tiny, *TWO, "--run.max-steps=1"], tmp_path / "run", "--run.no-store")
    last, finer = (torch.Size([16, 16, side, side]) for side in (2, 4))
    assert compared == [(last, last), (finer, finer)]
    exported = load_file(folder / "export" / "model.safetensors")
    one = run([*tiny, "--run.max-steps=1"], tmp_path / "one", "--run.no-store")
    assert exported.keys() == load_file(one / "export" / "model.safetensors").keys()
    assert json.loads((folder / "config.json").read_text())["method"]["feature_maps"] == 2


def test_the_finer_map_is_trained(tiny, tmp_path):
    """Its layers get another gradient than from the last map alone."""
    options = ["--data.image-size=64", "--run.max-steps=2", "--run.no-store"]
    files = [
        run([*tiny, *options, f"--method.feature-maps={maps}"], tmp_path / str(maps))
        for maps in (1, 2)
    ]
    one, two = (load_file(each / "export" / "model.safetensors") for each in files)
    assert not torch.equal(one["layer3.0.conv1.weight"], two["layer3.0.conv1.weight"])


def test_students_of_one_pass_have_maps_of_their_own(tiny, tmp_path):
    options = [*tiny, *TWO, "--run.max-steps=3", "--run.no-store"]
    together = run([*options, "--student.arch=test_resnet,test_convnext"], tmp_path / "both")
    for arch in ("test_resnet", "test_convnext"):
        alone = run([*options, f"--student.arch={arch}"], tmp_path / arch)
        losses = [line["loss"] for line in trace(together / arch)]
        assert losses == [line["loss"] for line in trace(alone)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--method.targets=pooled"], ConfigError, "targets pooled and --method.feature-maps 2"),
        (["--method.loss=similarity_kl", "--data.image-size=32"], ConfigError, "1 x 1 feature map"),
        (["--student.arch=test_vit", "--data.image-size=160"], StudentError, "feature-maps 1"),
    ],
)
def test_what_has_no_finer_map_ends_before_the_first_step(tiny, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run([*tiny, *TWO, *options], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_images_are_not_compiled_for(tiny, tmp_path, monkeypatch):
    """They are of another number than the batches, so each would be compiled anew."""
    seen = []

    def compiles(*_):
        raise AssertionError("compiled")

    def watched(maps, size):
        torch.compile(lambda x: x + 1, backend=compiles)(torch.ones(1))
        seen.append(size)
        return resample(maps, size)

    monkeypatch.setattr(scorer, "resample", watched)
    run([*tiny, "--data.held-out=0.1", "--run.max-steps=1"], tmp_path / "run", "--run.no-store")
    assert seen
