"""No code out of a stranger's file, whatever timm's own defaults are."""

import os
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from pcd_hub.errors import TeacherError
from pcd_hub.models import strangers
from pcd_hub.models.teachers import load_teacher
from tests.models.test_teachers import timm_folder


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
    payload = {"layer": _Code(canary)}
    if zipped:
        torch.save(payload, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(payload))
    with pytest.raises(TeacherError, match="cannot load local-dir:"):
        load_teacher(f"local-dir:{folder}")
    assert not canary.exists()


def test_tensors_alone_even_where_timm_asks_for_all(tmp_path, monkeypatch):
    torch.save({"layer": _Code(tmp_path / "canary")}, tmp_path / "file.bin")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(
        timm, "create_model", lambda *_, **__: torch.load(tmp_path / "file.bin", weights_only=False)
    )
    monkeypatch.setattr(strangers, "describe", lambda _: None)  # it would ask the Hub
    with pytest.raises(pickle.UnpicklingError):
        strangers.create_pretrained("hf-hub:evil/model")
    assert not (tmp_path / "canary").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


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
