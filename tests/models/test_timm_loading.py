"""No code out of a stranger's file, whatever timm's own defaults are."""

import json
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pcd_hub.errors import TeacherError
from pcd_hub.models import timm_loading
from pcd_hub.models.teacher_loading import load_teacher
from tests.hub.server import LoopbackHub
from tests.hub.surroundings import go_offline, point_client_at, settle
from tests.models.test_teachers import timm_folder
from tests.weights.hostile_teachers import borrowed_memory


class _Code:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "any.pth.tar", "x.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_a_folder_is_refused_and_not_run(tmp_path, name, zipped):
    folder, canary = timm_folder(tmp_path / "t"), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    payload = {"layer": _Code(canary), "as large as weights": b"0" * 10**7}
    if zipped:
        torch.save(payload, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(payload))
    with pytest.raises(TeacherError, match="cannot load local-dir:") as refused:
        load_teacher(f"local-dir:{folder}")
    assert "values" not in str(refused.value), "it was not looked into"
    assert not canary.exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"depth": 3000}, "model_args: depth is 3000, at most 300"),
        ({"depth": 250}, r"test_vit has \d{8} values, more than its weights of \d+ bytes can hold"),
        ({"embed_dim": 60_000}, r"has \d+ values, more than its weights"),
        ({"embed_dim": 10**9}, r"embed_dim is 1e\+09, at most 65536"),
        ({"img_size": [224, float("nan")]}, "img_size is nan, at most 65536"),
        ({"block_fn": {"repeats": [200, 200]}}, "block_fn is 400, at most 300"),
        ({"nothing_of_the_kind": 1}, "nothing_of_the_kind"),
        ([1], "cannot load"),
    ],
    ids=str,
)
def test_a_configuration_that_asks_for_more_than_its_weights_hold_is_refused_before_it_is_built(
    tmp_path, monkeypatch, asked, message
):
    folder = timm_folder(tmp_path / "t", "test_vit", model_args=asked)
    monkeypatch.setattr(timm, "create_model", None)
    with pytest.raises(TeacherError, match=message):
        load_teacher(f"local-dir:{folder}")


def test_a_configuration_may_ask_for_what_its_weights_hold(tmp_path):
    model = timm.create_model("test_vit", num_classes=0, depth=2)
    folder = timm_folder(tmp_path / "t", "test_vit", model_args={"depth": 2})
    save_file(model.state_dict(), folder / "model.safetensors")
    assert len(load_teacher(f"local-dir:{folder}", image_size=160).grid.model.blocks) == 2


@pytest.mark.parametrize(
    "config",
    ["[" * 100_000, " " * 2_000_000, "[]", "{}"],
    ids=["deep", "long", "a list", "empty"],
)
def test_an_odd_configuration_is_refused(tmp_path, config):
    folder = timm_folder(tmp_path / "t")
    (folder / "config.json").write_text(config)
    with pytest.raises(TeacherError, match="cannot load local-dir:"):
        load_teacher(f"local-dir:{folder}")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def huge(file: Path) -> None:
    os.truncate(file, 10**10)


@pytest.mark.parametrize("spoil", [pipe, endless, huge])
def test_a_configuration_that_never_ends_is_not_waited_for(tmp_path, spoil):
    folder = timm_folder(tmp_path / "t")
    spoil(folder / "config.json")
    with pytest.raises(TeacherError, match="expected a regular file|expected at most 1000000"):
        load_teacher(f"local-dir:{folder}")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {"embed_dim": 60_000}},
        {"input_size": [60_000, 64, 64]},
        {"input_size": [3, 60_000, 60_000], "fixed_input_size": True},
    ],
    ids=str,
)
def test_a_pickle_too_bounds_what_is_built(tmp_path, monkeypatch, changes):
    folder = timm_folder(tmp_path / "t", "test_vit")
    torch.save({"x": torch.zeros(1000)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_args": changes.pop("model_args", {})}
    config["pretrained_cfg"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(timm, "create_model", None)
    size = (folder / "pytorch_model.bin").stat().st_size
    with pytest.raises(TeacherError, match=rf"more than its weights of {size} bytes can hold"):
        load_teacher(f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("spoil", [pipe, endless])
def test_weights_that_never_end_are_not_waited_for(tmp_path, monkeypatch, name, spoil):
    folder = timm_folder(tmp_path / "t")
    (folder / "model.safetensors").rename(folder / name)
    spoil(folder / name)
    monkeypatch.setattr(timm, "create_model", None)
    with pytest.raises(TeacherError, match=f"{name} is a folder, a pipe"):
        load_teacher(f"local-dir:{folder}")


@pytest.mark.parametrize("kind", ["called for by name", "old form, unlisted", "cut short"])
def test_a_pickle_in_a_folder_is_looked_through_before_it_is_read(tmp_path, monkeypatch, kind):
    folder = timm_folder(tmp_path / "t")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(borrowed_memory()[kind])
    monkeypatch.setattr(timm, "create_model", None)
    monkeypatch.setattr(timm_loading, "_check_size", lambda *_: None)
    with pytest.raises(TeacherError, match="expected only tensors|exactly the|more bytes than"):
        load_teacher(f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "any.pth.tar", "x.bin"])
def test_a_pickle_of_tensors_in_a_folder_is_a_teacher(tmp_path, name):
    """Whatever else lies there: trainers leave pickles of their own."""
    folder = timm_folder(tmp_path / "t")
    expected = load_teacher(f"local-dir:{folder}").facts.sha256
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()
    (folder / "zz_training_args.bin").write_bytes(b"")
    assert load_teacher(f"local-dir:{folder}").facts.sha256 == expected


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as hub:
        point_client_at(hub, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub
        settle()


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def deep_vit(path: Path) -> Path:
    model = timm.create_model("test_vit", num_classes=0, depth=2)
    folder = timm_folder(path, "test_vit", model_args={"depth": 2})
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def test_a_repository_may_ask_for_what_its_weights_hold_online_and_from_the_cache(
    tmp_path, monkeypatch, hub
):
    hub.add_repo("org/vit", files(deep_vit(tmp_path / "t")))
    for source in ("hf-hub:org/vit", f"hf-hub:org/vit@{hub.head('org/vit')}"):
        teacher = load_teacher(source, image_size=160)
        assert len(teacher.grid.model.blocks) == 2
    go_offline(monkeypatch)
    assert len(load_teacher("hf-hub:org/vit", image_size=160).grid.model.blocks) == 2


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path, monkeypatch, hub, caplog):
    """The client would try each file for 23 s, with two lines a retry."""
    hub.add_repo("org/vit", files(deep_vit(tmp_path / "t")))
    load_teacher("hf-hub:org/vit", image_size=160)
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, DEAD)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", DEAD)
    caplog.clear()
    start = time.monotonic()
    assert len(load_teacher("hf-hub:org/vit", image_size=160).grid.model.blocks) == 2
    for source in ("timm:resnet18.a1_in1k", "hf-hub:org/other"):
        with pytest.raises(TeacherError, match=r"the Hub does not answer \(.*or use a file"):
            load_teacher(source)
    assert time.monotonic() - start < 15
    of_client = [one for one in caplog.records if one.name != "pcd_hub"]
    assert not [one for one in of_client if one.levelname == "WARNING"]
    assert not constants.HF_HUB_OFFLINE, "that is over with the load"


DEAD = "http://127.0.0.1:9"


@pytest.mark.parametrize("at", ["", "@v1"])
def test_a_repository_is_held_against_the_weights_it_lists(tmp_path, monkeypatch, hub, at):
    folder = timm_folder(tmp_path / "t", "test_vit", model_args={"embed_dim": 8192})
    hub.add_repo("org/vit", files(folder))
    hub.tag("org/vit", "v1")
    if at:
        hub.commit("org/vit", {"model.safetensors": bytes(10**6)})
    monkeypatch.setattr(timm, "create_model", None)
    size = (folder / "model.safetensors").stat().st_size
    with pytest.raises(TeacherError, match=rf"\d+ values, more than its weights of {size} bytes"):
        load_teacher(f"hf-hub:org/vit{at}", image_size=160)
    assert hub.count("GET", "resolve.*model.safetensors") == 0, "before they are downloaded"


def test_a_repository_of_which_nothing_is_known_asks_for_no_more_than_timm_has(
    tmp_path, monkeypatch, hub
):
    folder = timm_folder(tmp_path / "t", "test_vit", model_args={"embed_dim": 60_000})
    hub.add_repo("org/vit", files(folder))
    monkeypatch.setattr(timm, "create_model", None)
    monkeypatch.setattr(timm_loading, "_hub_file_sizes", lambda _: [])
    with pytest.raises(TeacherError, match=r"\d{11} values, more than the 7000000000 allowed"):
        load_teacher("hf-hub:org/vit", image_size=160)


def test_a_hub_that_does_not_list_its_files_leaves_the_size_unknown(monkeypatch, hub):
    hub.fault("status", "/api/models/", status=500, times=99)
    assert timm_loading._hub_file_sizes("org/vit@main") == []
    go_offline(monkeypatch)
    assert timm_loading._hub_file_sizes("org/vit") == []


def test_a_pickle_on_the_hub_is_not_run(tmp_path, monkeypatch, hub):
    folder, canary = timm_folder(tmp_path / "t"), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    torch.save({"layer": _Code(canary)}, folder / "pytorch_model.bin")
    hub.add_repo("org/evil", files(folder))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(TeacherError, match=r"cannot load hf-hub:org/evil: .*[Ww]eights.only"):
        load_teacher("hf-hub:org/evil")
    assert not canary.exists()


def test_the_hub_is_not_asked_for_sizes_where_nothing_is_asked_for(tmp_path, hub):
    hub.add_repo("org/plain", files(timm_folder(tmp_path / "t")))
    load_teacher("hf-hub:org/plain")
    assert hub.count("GET", "/api/models/") == 0


# Two threads.


def interleaved(context: Callable) -> None:
    """Run a thread that enters while another is inside, and stays until that has left."""
    first_in, second_in, first_may_leave, first_left = (threading.Event() for _ in range(4))

    def first() -> None:
        with context():
            first_in.set()
            first_may_leave.wait(10)
        first_left.set()

    def second() -> None:
        with context():
            second_in.set()
            first_left.wait(10)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert first_in.wait(10)
    threads[1].start()
    second_in.wait(0.5)
    first_may_leave.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_two_threads_leave_torch_as_it_was():
    original = nn.Module.load_state_dict
    interleaved(timm_loading.unmatched_keys)
    assert nn.Module.load_state_dict is original


def test_another_threads_missing_weights_are_not_a_teachers():
    def load() -> None:
        nn.Linear(1, 1).load_state_dict({}, strict=False)

    with timm_loading.unmatched_keys() as unmatched:
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        assert unmatched.missing == []
        load()
    assert unmatched.missing == ["weight", "bias"]


def test_two_teachers_load_at_once(tmp_path):
    folder, loaded = timm_folder(tmp_path / "t"), []
    threads = [
        threading.Thread(target=lambda: loaded.append(load_teacher(f"local-dir:{folder}").facts))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    assert len({facts.sha256 for facts in loaded}) == 1
