"""What is published passes the Hub's own client, and loads without pcd_hub."""

import subprocess
import sys

import pytest
import timm
import torch
from huggingface_hub import ModelCard

import pcd_hub
from pcd_hub.weights.record import HUB_LICENSES
from tests.hub.surroundings import point_client_at, settle
from tests.weights.making import exported

REPO = "org/weight"
TOKEN = "hf_" + "a1B2" * 9
PLAIN_TIMM = """
import sys
sys.modules["pcd_hub"] = None  # importing it fails
import timm, torch
images = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
with torch.no_grad():
    model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
    print(repr(float(model(images).sum())), model.pretrained_cfg["mean"])
    name = "local-dir:" + sys.argv[1]
    print(len(timm.create_model(name, pretrained=True, features_only=True)(images)))
"""


@pytest.fixture(params=["distilled", "imported"])
def published(request, hub, monkeypatch, tmp_path):
    """The folder of a published weight, as the Hub has it."""
    hub.add_user("ann", token=TOKEN, orgs=("org",))
    point_client_at(hub, monkeypatch, token=TOKEN)
    if request.param == "distilled":
        weight = exported(tmp_path / "export")
    else:
        state = timm.create_model("test_resnet").state_dict()
        torch.save(state, tmp_path / "theirs.pth")
        weight = pcd_hub.import_weights(tmp_path / "theirs.pth", "test_resnet").name
    pcd_hub.publish(weight, REPO, license=None if request.param == "distilled" else "mit")
    folder = tmp_path / "published"
    folder.mkdir()
    for name, content in hub.files(REPO).items():
        (folder / name).write_bytes(content)
    yield folder
    settle()


def test_the_card_is_valid_for_the_hubs_client(published, hub):
    card = ModelCard.load(published / "README.md")
    before = hub.count("POST", "/api/validate-yaml")
    card.validate()
    assert hub.count("POST", "/api/validate-yaml") == before + 1
    assert card.data.license in HUB_LICENSES
    again = ModelCard(str(card)).data.to_dict()
    assert again == card.data.to_dict()
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert isinstance(card.data.tags, list)
    for result in card.data.eval_results or []:
        assert isinstance(result.metric_value, float)


def test_plain_timm_loads_it_without_pcd_hub(published):
    command = [sys.executable, "-c", PLAIN_TIMM, str(published)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, stages = done.stdout.splitlines()
    model = pcd_hub.create_model(f"local-dir:{published}").eval()
    images = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with torch.no_grad():
        expected = float(model(images).sum())
    assert float(first.split()[0]) == pytest.approx(expected, rel=1e-5)
    assert "0.485" in first
    assert stages == "5"
