"""Everything a run writes is tried before its first step, and no failure at the end loses it."""

import errno
import tempfile
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

import pcd_hub
from pcd_hub import cli
from pcd_hub.errors import CheckpointError, ConfigError, PCDHubError, WeightError
from pcd_hub.train import distill
from pcd_hub.train.distillation import building
from pcd_hub.train.monitors.progress import Progress
from pcd_hub.train.results import weight
from pcd_hub.weights import store
from tests.weights.making import exported

pytestmark = pytest.mark.usefixtures("no_pictures")


def no_right(*_, **__):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def no_folder(*_):
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")


def no_step(*_):
    raise AssertionError("a step was taken")


def store_below_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "file" / "store"))


def name_held_by_a_folder(monkeypatch, tmp_path):
    (store.home() / "test_resnet.pcd_quickstart").mkdir(parents=True)


def no_home(monkeypatch, tmp_path):
    for name in ("HOME", "PCD_HUB_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)


def temporary_files_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))


def no_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._get_default_tempdir", no_folder)


def no_room_in_the_store(monkeypatch, tmp_path):
    class Usage:
        def __init__(self, path):
            self.free = 1000 if path == store.home() else 10**12

    store.home().mkdir()
    monkeypatch.setattr("shutil.disk_usage", Usage)


def room_for_one_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000_000))


@pytest.mark.parametrize(
    ("prepare", "folder", "message"),
    [
        (room_for_one_checkpoint, "run", "run has 10 MB free, expected at least 15 MB; name anoth"),
        (None, "file/run", "the run's folder .*file/run: Not a directory; name another --run.out"),
        (store_below_a_file, "run", "the store .*: Not a directory; set PCD_HUB_HOME .*no-store"),
        (name_held_by_a_folder, "run", "is a plain folder .*; move it away"),
        (no_home, "run", "the store .* ~/.cache, but this user has no home .* set PCD_HUB_HOME"),
        (temporary_files_in_a_file, "run", "of temporary files .*file: Not a directory; .*TMPDIR"),
        (no_temporary_files, "run", "no folder for temporary files can be written .*; set TMPDIR"),
        (
            no_room_in_the_store,
            "run",
            "the store .* has 0 MB free, .* at least 1 MB; .*PCD_HUB_HOME",
        ),
    ],
)
def test_every_place_is_tried_before_the_first_step(
    tiny, tmp_path, monkeypatch, prepare, folder, message
):
    (tmp_path / "file").write_text("")
    if prepare:
        prepare(monkeypatch, tmp_path)
    monkeypatch.setattr(distill, "open_batches", no_step)
    with pytest.raises(PCDHubError, match=message) as caught:
        distill.main([*tiny, f"--run.output-dir={tmp_path / folder}"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob(".pcd-hub-*")), "a trial was left behind"


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("a\0b", [], r"the run's folder '.*a.x00b' contains a NUL character; name another --run.o"),
        ("a" * 300, [], "File name too long.*; name another"),
        ("a" * 300, ["--run.resume"], "contains no run; name its folder with --run.output-dir"),
    ],
)
def test_a_run_folder_of_an_impossible_name_is_refused(tiny, tmp_path, name, more, message):
    with pytest.raises(ConfigError, match=message):
        distill.main([*tiny, f"--run.output-dir={tmp_path / name}", *more])


def test_a_run_of_another_user_is_not_resumed(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    arguments = [*tiny, f"--run.output-dir={folder}", "--run.no-store", "--run.max-steps=1"]
    distill.main(arguments)
    make = tempfile.mkdtemp

    def denied(suffix=None, prefix=None, dir=None):  # noqa: A002 - as it is called
        return no_right() if dir == folder / "checkpoints" else make(suffix, prefix, dir)

    monkeypatch.setattr("tempfile.mkdtemp", denied)
    with pytest.raises(ConfigError, match="run/checkpoints: Operation not permitted; name another"):
        distill.main([*arguments, "--run.resume"])


def test_a_weight_that_cannot_be_stored_stays_in_the_run_and_is_added_later(
    tmp_path, monkeypatch, capsys
):
    export = exported(tmp_path / "run" / "export")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", no_right)
        with pytest.raises(WeightError, match=f"is complete in {export}, ") as caught:
            weight.add_to_store("test_resnet.pcd_mine", export)
    words = str(caught.value).partition("`pcd-hub ")[2].partition("`")[0].split()
    cli.main(words)
    assert capsys.readouterr().out.split() == [words[-1], str(store.home() / words[-1])]
    assert pcd_hub.create_model("test_resnet.pcd_mine")
    cli.main(["add", str(tmp_path / "run")])
    assert pcd_hub.where("test_resnet.pcd"), "under the record's name, from the run's folder"


def test_a_result_that_cannot_be_written_is_written_by_a_resumed_run(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    arguments = [*tiny, f"--run.output-dir={folder}", "--run.max-steps=1"]

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr("pcd_hub.models.tensor_files.save_file", full)
        patched.setattr(building, "check_exportable", lambda *_, **__: None)
        with pytest.raises(CheckpointError, match=f"No space left .* distill --resume {folder}"):
            distill.main(arguments)
    monkeypatch.setattr(Progress, "measure", no_step)
    distill.main([*arguments, "--run.resume"])
    assert pcd_hub.where("test_resnet.pcd_quickstart")
