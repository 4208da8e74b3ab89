"""The whole way in processes of their own: publish, fetch, plain timm, offline by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from tests.weights.making import exported, files_of

REPO = "org/resnet18.pcd"
TOKEN = "hf_" + "a1B2" * 9
ROOT = Path(__file__).parents[2]


def run(arguments, env, *, status=0):
    done = subprocess.run(
        arguments, env=env, capture_output=True, text=True, check=False, timeout=200, cwd=ROOT
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture
def pcd_hub_command():
    return str(Path(sys.executable).with_name("pcd-hub"))


def test_publish_fetch_and_load_as_users_do(hub, tmp_path, pcd_hub_command):
    """Privately first, with the command; then opened; then by plain timm and by a second user."""
    torch.manual_seed(5)
    model = timm.create_model("resnet18", num_classes=0)
    exported(tmp_path / "run" / "export", "resnet18", model)
    hub.add_user("ann", token=TOKEN, orgs=("org",))
    ann = hub.env(tmp_path / "ann", TOKEN)
    stranger = hub.env(tmp_path / "stranger")

    out = run([pcd_hub_command, "publish", str(tmp_path / "run"), REPO, "--private"], ann)
    entry = json.loads(out[out.index("{") :])
    assert "(private)" in out
    refused = run([pcd_hub_command, "fetch", REPO], stranger, status=1)
    assert "not visible to anonymous users (no token is set)" in refused
    again = run([pcd_hub_command, "publish", str(tmp_path / "run"), REPO, "--public"], ann)
    assert again.startswith("nothing to change")
    assert entry["commit"] in again

    lock = run([pcd_hub_command, "fetch", REPO], stranger).splitlines()
    assert lock[0] == f"{REPO}@{entry['commit']} {entry['manifest_sha256']}"
    assert lock[1].startswith(str(tmp_path / "stranger")), "HF_HOME is where things go"

    expected = float(model.conv1.weight.detach().double().sum())
    loaded = run([sys.executable, "-c", PLAIN_TIMM, REPO, entry["commit"]], stranger)
    assert float(loaded) == expected
    before = len(hub.requests)
    offline = {**stranger, "HF_HUB_OFFLINE": "1", "PCD_HUB_ORG": "org"}
    assert float(run([sys.executable, "-c", BY_NAME], offline)) == expected
    assert len(hub.requests) == before


PLAIN_TIMM = """
import sys, timm, torch
repo, commit = sys.argv[1:]
sums = set()
for name in (f"hf-hub:{repo}", f"hf-hub:{repo}@{commit}"):
    for arguments in ({}, {"num_classes": 10}, {"features_only": True}):
        model = timm.create_model(name, pretrained=True, **arguments)
        sums.add(float(model.conv1.weight.detach().double().sum()))
gray = timm.create_model(f"hf-hub:{repo}", pretrained=True, in_chans=1)
torch.testing.assert_close(gray.conv1.weight, model.conv1.weight.sum(1, keepdim=True))
cfg = timm.create_model(f"hf-hub:{repo}", pretrained=True).pretrained_cfg
assert cfg["tag"] == "pcd" and cfg["license"] == "apache-2.0", cfg
assert cfg["interpolation"] == "bicubic" and "a1_in1k" not in str(cfg), cfg
assert "pcd_hub" not in sys.modules
(one,) = sums
print(one)
"""

BY_NAME = """
import pcd_hub, timm
one = pcd_hub.create_model("resnet18.pcd").conv1.weight
two = timm.create_model("resnet18.pcd", pretrained=True, features_only=True).conv1.weight
assert (one == two).all()
print(float(one.detach().double().sum()))
"""


def test_an_own_architecture_says_what_it_needs(hub, tmp_path):
    export = exported(tmp_path / "run" / "export", "resnet18_mhsa")
    files = files_of(export)
    assert b"import pcd_hub, timm  # pcd_hub brings the architecture" in files["README.md"]
    hub.add_repo("org/resnet18_mhsa.pcd", files)
    load = 'timm.create_model("hf-hub:org/resnet18_mhsa.pcd", pretrained=True)'
    env = hub.env(tmp_path / "home")
    run([sys.executable, "-c", f"import pcd_hub, timm; {load}"], env)
    run([sys.executable, "-c", f"import timm; {load}"], env, status=1)


def test_the_way_over_xet_is_the_same(hub, tmp_path, pcd_hub_command):
    """Xet is what real users' clients speak today; huggingface_hub 1.0 stays on LFS."""
    hub.xet = True
    hub.add_user("ann", token=TOKEN, orgs=("org",))
    export = exported(tmp_path / "export")
    ann = hub.env(tmp_path / "ann", TOKEN, xet=True)
    out = run([pcd_hub_command, "publish", str(export), "org/test_resnet.pcd"], ann)
    commit = json.loads(out[out.index("{") :])["commit"]
    again = run([pcd_hub_command, "publish", str(export), "org/test_resnet.pcd"], ann)
    assert again.startswith("nothing to change")
    stranger = hub.env(tmp_path / "stranger", xet=True)
    lock = run([pcd_hub_command, "fetch", "org/test_resnet.pcd"], stranger)
    assert lock.startswith(f"org/test_resnet.pcd@{commit} ")
