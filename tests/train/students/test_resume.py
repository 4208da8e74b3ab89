"""Several students: stopped, resumed together or alone, ended early, and one that fails."""

import shutil
import signal

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.train import distill
from pcd_hub.train.distillation import building
from pcd_hub.train.held_out.held_out import HeldOut
from pcd_hub.train.signals import StoppedRun
from tests.train.conftest import trace
from tests.train.students.conftest import ARCHITECTURES, assert_equal_runs, separate, together
from tests.train.test_run import raise_signal_at

pytestmark = pytest.mark.usefixtures("no_pictures")


def saved(folder) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("step_*.pt")}


@pytest.fixture
def whole(several, tmp_path, dropping):
    """Separate runs that were not stopped."""
    return separate(several, tmp_path / "separate")


def test_a_signal_saves_all_students_at_one_step(several, whole, tmp_path, monkeypatch):
    folder = tmp_path / "together"
    with monkeypatch.context() as patched:
        raise_signal_at(patched, signal.SIGTERM, at=3)
        with pytest.raises(
            StoppedRun, match=f"after step 4, .* pcd-hub distill --resume {folder}$"
        ):
            together(several, folder)
    for architecture in ARCHITECTURES:
        assert saved(folder / architecture) == {"step_00000003.pt", "step_00000004.pt"}
    alone = tmp_path / "copied"
    shutil.copytree(folder, alone)
    distill.main(["--resume", str(folder)])
    assert_equal_runs(folder, whole)
    for architecture in ARCHITECTURES:
        distill.main(["--resume", str(alone / architecture)])
    assert_equal_runs(alone, whole)


@pytest.mark.parametrize("behind", ARCHITECTURES)
def test_a_student_that_is_ahead_waits_for_the_others(
    several, whole, tmp_path, monkeypatch, counted, behind
):
    folder = tmp_path / "together"
    with monkeypatch.context() as patched:
        raise_signal_at(patched, signal.SIGTERM, at=3)
        with pytest.raises(StoppedRun):
            together(several, folder)
    (folder / behind / "checkpoints" / "step_00000004.pt").unlink()
    counted.update(teacher=0, loader=0)
    together(several, folder, "--run.resume")
    assert counted == {"teacher": 3, "loader": 1}, "the steps 3, 4 and 5"
    assert_equal_runs(folder, whole)


def test_a_student_on_a_plateau_ends_alone(several, tmp_path, monkeypatch):
    def ends_resnet(self, done):
        if self.folder.path.name == "test_resnet" and done == 4:
            self.end.begin(done)

    monkeypatch.setattr(HeldOut, "_check_plateau", ends_resnet)
    long = ["--run.max-steps=12", "--run.measure-every-steps=2", "--run.stop-on-plateau"]
    folder = together([*several, *long], tmp_path / "together")
    one = separate([*several, *long], tmp_path / "separate")
    for architecture, steps in zip(ARCHITECTURES, (5, 12), strict=True):
        assert len(trace(folder / architecture)) == steps
        assert trace(folder / architecture) == trace(one / architecture)
    (folder / "test_vit" / "checkpoints" / "step_00000012.pt").unlink()
    distill.main(["--resume", str(folder)])
    assert trace(folder / "test_vit") == trace(one / "test_vit")
    assert "| test_resnet.pcd_quickstart | 5 |" in (folder / "students.md").read_text()


def test_where_one_student_fails_the_others_are_saved(several, tmp_path, monkeypatch, caplog):
    loss_of, calls = building.pixel_info_nce, iter(range(100))

    def bad(*args, **kwargs):
        loss = loss_of(*args, **kwargs)
        return loss * float("nan") if next(calls) == 2 * 4 + 1 else loss

    without = [option for option in several if not option.startswith("--data.held-out")]
    with monkeypatch.context() as patched, caplog.at_level("INFO", "pcd_hub"):
        patched.setattr(building, "pixel_info_nce", bad)
        with pytest.raises(ConfigError, match="the loss is nan at step 4; .*run/test_vit/bad_"):
            together(without, tmp_path / "run")
    folder = tmp_path / "run"
    assert saved(folder / "test_resnet") == {"step_00000003.pt", "step_00000005.pt"}
    assert saved(folder / "test_vit") == {"step_00000003.pt"}
    assert f"test_resnet is saved after step 5; pcd-hub distill --resume {folder}" in caplog.text
    distill.main(["--resume", str(folder)])
    assert len(trace(folder / "test_vit")) == len(trace(folder / "test_resnet")) == 6
