from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from accelerate.utils import LoggerType

from pcd_hub.errors import ConfigError
from pcd_hub.train.monitors import trackers
from pcd_hub.weights import store
from tests.train.conftest import run

PICTURES = ["features.png", "pca.png", "receptive_field.png", "training.png", "views.png"]


def test_trackers_write_into_the_run_folder(tiny, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    options = ["--run.no-store", "--run.trackers", "tensorboard", "--run.project", "mine"]
    folder = run(tiny, tmp_path / "run", *options)
    (events,) = (folder / "mine").glob("events.out.tfevents.*")
    seen = EventAccumulator(str(events), size_guidance={"images": 0})
    seen.Reload()
    tags = seen.Tags()
    assert {"loss", "lr"} <= set(tags["scalars"])
    assert {(tag, seen.Images(tag)[0].step) for tag in tags["images"]} == {
        ("views", 0),
        ("features", 5),
        ("pca", 5),
        ("receptive_field", 5),
        ("training", 5),
    }
    assert (seen.Images("views")[0].width, seen.Images("views")[0].height) == (8 * 32, 2 * 32)
    (parameters,) = folder.rglob("hparams.yml")
    found = yaml.safe_load(parameters.read_text())
    assert found["optim.lr_per_256"] == 0.02
    assert found["student.arch"] == "test_resnet"
    assert found["optim.clip_grad_norm"] == "null"
    assert not {path.name for path in tmp_path.iterdir()} - {"run", "store"}


class _Tracker:
    """Tracker with Accelerate's interface that takes pictures as files."""

    name = "mlflow"
    requires_logging_directory = False
    made: ClassVar[list["_Tracker"]] = []

    def __init__(self, project, **arguments):
        self.project, self.arguments, self.artifacts, self.config = project, arguments, [], {}
        self.finished = False
        _Tracker.made.append(self)

    def start(self):
        if self.project == "refused":
            raise RuntimeError("no API key\nsee elsewhere")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step, **_):
        self.last = (step, values["loss"])
        if self.project == "broken":
            raise RuntimeError("HTTP 503\nlater")

    def log_artifact(self, path):
        assert not self.finished, "a tracker takes nothing after its end"
        self.artifacts.append(Path(path).name)
        if self.project == "broken":
            raise OSError("no quota")

    def finish(self):
        self.finished = True
        if self.project == "broken":
            raise ConnectionError("the network is gone")


def test_a_tracker_gets_project_run_name_and_pictures_or_fails_with_one_line(
    tiny, tmp_path, monkeypatch, caplog
):
    def assert_still_open():
        assert not _Tracker.made[-1].finished, "an export that is stored comes first"

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.MLFLOW])
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "mlflow", _Tracker)
    short = ["--run.no-store", "--run.max-steps=1", "--run.trackers", "mlflow"]
    for options, run_name in (([], "one"), (["--run.run-name=first"], "first")):
        run(tiny, tmp_path / "one" if not options else tmp_path / "two", *short, *options)
        tracker = _Tracker.made.pop()
        assert (tracker.project, tracker.arguments) == ("pcd_hub", {"run_name": run_name})
        assert tracker.config["run.max_steps"] == 1
        assert tracker.last[0] == 0
        assert sorted(tracker.artifacts) == PICTURES
        assert tracker.finished
    assert "tracker" not in caplog.text
    monkeypatch.setattr(store, "add", lambda *_: assert_still_open())
    run(tiny, tmp_path / "broken", *short[1:], "--run.project=broken")
    assert (tmp_path / "broken" / "record.json").exists()
    tracker = _Tracker.made.pop()
    assert tracker.finished
    assert tracker.last[0] == 0
    assert sorted(tracker.artifacts) == PICTURES
    assert (
        caplog.text.count("the tracker mlflow failed (OSError: no quota); the run continues") == 1
    )
    assert caplog.text.count("the tracker mlflow") == 1
    with pytest.raises(ConfigError, match=r"mlflow: cannot start \(RuntimeError: no API key\)"):
        run(tiny, tmp_path / "three", *short, "--run.project=refused")


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("wandb", "--run.trackers wandb: not installed; pip install wandb"),
        ("wandbb", "wandbb: Accelerate has no such tracker; did you mean 'wandb'.*tensorboard"),
    ],
)
def test_an_unavailable_tracker_is_reported(tiny, tmp_path, monkeypatch, tracker, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        run(tiny, tmp_path / "run", "--run.trackers", tracker)
