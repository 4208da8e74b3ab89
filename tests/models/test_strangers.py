"""No code out of a stranger's file, whatever timm's own defaults are."""

import os
import pickle

import pytest
import timm
import torch

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
    with pytest.raises(pickle.UnpicklingError):
        strangers.create_pretrained("hf-hub:evil/model")
    assert not (tmp_path / "canary").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
