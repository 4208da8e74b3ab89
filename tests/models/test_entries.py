import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from safetensors.torch import load_file

import pcd_hub
from pcd_hub.models.entries import STOCK_ARCHITECTURES, entry_cfg
from pcd_hub.weights import store
from tests.weights.making import exported


def in_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_architecture_changes_its_default_or_loses_a_tag():
    out = in_new_process("""
import timm
names = timm.list_models()
def facts():
    return {name: (cfg.tag, cfg.num_classes, cfg.hf_hub_id, cfg.url)
            for name in names if (cfg := timm.get_pretrained_cfg(name, allow_unregistered=True))}
before, tags = facts(), set(timm.list_pretrained())
import pcd_hub
assert facts() == before, "a default changed"
assert tags <= set(timm.list_pretrained()), "a tag was lost"
print(len(before))
""")
    assert int(out) > 1000


def test_import_is_cheap_and_opens_no_connection():
    out = in_new_process("""
import socket, time, timm
def refuse(*args):
    raise AssertionError("a connection at import")
socket.socket.connect = socket.getaddrinfo = refuse
start = time.process_time()
import pcd_hub
print(time.process_time() - start)
""")
    assert float(out) < 1.5  # timm, imported before, takes seconds


def test_a_second_import_and_reload_are_harmless():
    in_new_process("""
import warnings
warnings.simplefilter("error")
import importlib, timm, pcd_hub, pcd_hub.models.entries
default = timm.get_pretrained_cfg("resnet18").tag
importlib.reload(pcd_hub)
importlib.reload(pcd_hub.models.entries)
importlib.reload(pcd_hub)
assert timm.get_pretrained_cfg("resnet18").tag == default != "pcd"
assert timm.get_pretrained_cfg("resnet18.pcd").num_classes == 0
""")


def test_spawned_workers_build_the_entries():
    in_new_process("""
import multiprocessing, timm, pcd_hub
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(timm.is_model, ("resnet18",))
""")


@pytest.mark.parametrize("arch", [*STOCK_ARCHITECTURES, "resnet18_mhsa"])
def test_entries_describe_a_headless_backbone_of_ours(arch):
    cfg = timm.get_pretrained_cfg(f"{arch}.pcd")
    assert cfg.num_classes == 0
    assert cfg.license is None, "a licence is a weight's, and none is loaded"
    assert cfg.hf_hub_id is None
    assert not cfg.has_weights
    if arch != "resnet18_mhsa":
        assert cfg.first_conv == timm.get_pretrained_cfg(arch).first_conv
        assert cfg.classifier == timm.get_pretrained_cfg(arch).classifier


def test_without_a_weight_three_ways_to_one_are_named():
    with pytest.raises(pcd_hub.WeightError, match=r"Distil.*PCD_HUB_HOME.*PCD_HUB_ORG"):
        timm.create_model("resnet18.pcd", pretrained=True)


@pytest.fixture
def stored(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("resnet18.pcd")
    store.add("resnet18.pcd", exported(tmp_path / "export", "resnet18", model))
    return model.eval()


IMAGES = torch.rand(1, 3, 64, 64)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_classes": 10},
        {"in_chans": 1},
        {"features_only": True},
        {"features_only": True, "out_indices": (2, 4)},
        {"features_only": True, "output_stride": 8},
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "resnet18.pcd",
        "local-dir:{home}/resnet18.pcd",
    ],
)
def test_the_stored_weight_loads_every_way(stored, name, arguments):
    model = timm.create_model(name.format(home=store.home()), pretrained=True, **arguments).eval()
    if arguments.get("in_chans") == 1:
        expected = stored.conv1.weight.sum(1, keepdim=True)
        torch.testing.assert_close(model.conv1.weight, expected)
        return
    for key, value in stored.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    if arguments.get("features_only"):
        expected = stored.forward_intermediates(IMAGES, intermediates_only=True)
        wanted = arguments.get("out_indices", range(5))
        if "output_stride" not in arguments:
            for map_, index in zip(model(IMAGES), wanted, strict=True):
                assert torch.equal(map_, expected[index])
    else:
        assert torch.equal(model.forward_features(IMAGES), stored.forward_features(IMAGES))


@pytest.mark.parametrize("arch", STOCK_ARCHITECTURES)
def test_every_entry_loads_every_way_timm_has(arch, tmp_path):
    """Headless, with a new head, in gray, as features_only: the very weights that were stored."""
    size = 224 if timm.get_pretrained_cfg(arch).fixed_input_size else 64
    model = timm.create_model(arch, num_classes=0).eval()
    store.add(f"{arch}.pcd", exported(tmp_path / "export", arch, model, size))
    images = torch.rand(1, 3, size, size)
    expected = model.forward_features(images).detach()
    for arguments in ({}, {"num_classes": 10}):
        again = timm.create_model(f"{arch}.pcd", pretrained=True, **arguments).eval()
        assert torch.equal(again.forward_features(images), expected)
    gray = timm.create_model(f"{arch}.pcd", pretrained=True, in_chans=1).eval()
    torch.testing.assert_close(
        gray.forward_features(images[:, :1]),
        model.forward_features(images[:, :1].expand(-1, 3, -1, -1)),
        rtol=1e-3,
        atol=1e-3 * float(expected.abs().max()),
    )
    features = timm.create_model(f"{arch}.pcd", pretrained=True, features_only=True).eval()
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert torch.equal(features(images)[-1], maps[-1])


def test_the_store_is_asked_when_a_model_is_built(stored, monkeypatch):
    assert timm.create_model("resnet18.pcd", pretrained=True)
    monkeypatch.setenv("PCD_HUB_LOCAL", "0")
    with pytest.raises(pcd_hub.WeightError, match="PCD_HUB_LOCAL=0 turns the local store off"):
        timm.create_model("resnet18.pcd", pretrained=True)


def test_timm_lists_a_weight_exactly_while_it_is_found(tmp_path, monkeypatch):
    def listed():
        names = timm.list_pretrained("*.pcd")
        assert names == timm.list_models("*.pcd", pretrained=True)
        assert names == [name for name in ENTRIES if timm.is_model_pretrained(name)]
        return names

    others = timm.list_pretrained()
    assert listed() == []
    for arch in ("resnet18", "resnet18_mhsa"):
        assert timm.is_model_pretrained("resnet18_mhsa") is False, "its default is the tag pcd"
        store.add(f"{arch}.pcd", exported(tmp_path / arch, arch))
    assert listed() == ["resnet18.pcd", "resnet18_mhsa.pcd"]
    assert set(timm.list_pretrained()) == {*others, *listed()}
    assert "resnet18_mhsa" in timm.list_models(pretrained=True, include_tags=False)
    (store.home() / "resnet18_mhsa.pcd").unlink()
    assert listed() == ["resnet18.pcd"]
    monkeypatch.setenv("PCD_HUB_LOCAL", "0")
    assert listed() == []
    monkeypatch.setattr("pcd_hub.weights.catalogue.published_weights", lambda: {"repvit_m1.pcd": 1})
    assert listed() == ["repvit_m1.pcd"]
    monkeypatch.setenv("PCD_HUB_ORG", "no/such//organisation")
    assert listed() == [], "a listing raises nothing"
    assert timm.is_model_pretrained("resnet18.a1_in1k")
    assert not timm.is_model_pretrained("no_such_model.pcd")


ENTRIES = sorted(f"{arch}.pcd" for arch in (*STOCK_ARCHITECTURES, "resnet18_mhsa"))


@pytest.mark.parametrize("arguments", [{"num_classes": 10}, {"features_only": True}])
def test_a_weights_file_loads_the_way_the_readme_says(tmp_path, arguments):
    """timm's ``checkpoint_path`` is strict: no new head and no MobileNetV3 maps load by it."""
    name = "mobilenetv3_large_100"
    file = exported(tmp_path / "export", name) / "model.safetensors"
    with pytest.raises(RuntimeError, match="Missing key|Unexpected key"):
        timm.create_model(name, checkpoint_path=str(file), **arguments)
    model = timm.create_model(
        f"{name}.pcd", pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments
    )
    assert torch.equal(model.conv_stem.weight, load_file(file)["conv_stem.weight"])


@pytest.mark.parametrize("arguments", [{}, {"features_only": True}])
def test_a_model_does_not_carry_its_tensors_twice(stored, arguments):
    model = timm.create_model("resnet18.pcd", pretrained=True, **arguments)
    for module in model.modules():
        for facts in ("pretrained_cfg", "default_cfg"):
            assert "state_dict" not in getattr(module, facts, {})


def test_other_tags_and_other_names_stay_timms(stored):
    """Only the tag pcd asks the store; random weights ask nobody."""
    store.where("resnet18.pcd").joinpath("model.safetensors").write_bytes(b"")
    assert timm.create_model("resnet18.pcd", pretrained=False)
    with pytest.raises(Exception, match="OfflineModeIsEnabled|offline|connection|cached"):
        timm.create_model("resnet18.a1_in1k", pretrained=True)
    with pytest.raises(pcd_hub.WeightError, match="has 0 bytes"):
        timm.create_model("resnet18", pretrained=True, pretrained_cfg="pcd")


def test_a_source_that_the_caller_names_wins(stored):
    other = {key: torch.zeros_like(value) for key, value in stored.state_dict().items()}
    model = timm.create_model(
        "resnet18.pcd", pretrained=True, pretrained_cfg_overlay={"state_dict": other}
    )
    assert not model.conv1.weight.any()


def test_local_dir_needs_no_pcd_hub(stored):
    out = in_new_process(f"""
import sys, timm
model = timm.create_model("local-dir:{store.home()}/resnet18.pcd", pretrained=True)
assert "pcd_hub" not in sys.modules
print(float(model.conv1.weight.detach().double().sum()), model.pretrained_cfg["tag"])
""").split()
    assert float(out[0]) == float(stored.conv1.weight.detach().double().sum())
    assert out[1] == "pcd"


def test_a_damaged_weight_is_not_loaded(stored):
    path = store.where("resnet18.pcd") / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(pcd_hub.WeightError, match="sha256"):
        timm.create_model("resnet18.pcd", pretrained=True)


def test_models_survive_pickle_and_deepcopy(stored):
    model = timm.create_model("resnet18.pcd", pretrained=True).eval()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(twin(IMAGES), model(IMAGES))


# Our own architecture.


def trained_mhsa(**arguments):
    model = timm.create_model("resnet18_mhsa", **arguments).eval()
    for module in model.modules():
        if isinstance(module, pcd_hub.SelfAttention2d):
            torch.nn.init.normal_(module.proj.weight, std=0.1)
    return model


def test_mhsa_is_in_every_door_of_timm():
    model = trained_mhsa()
    last = model.forward_features(IMAGES)
    without_attention = model.layer4[:2](
        model.layer3(
            model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(IMAGES))))))
        )
    )
    assert not torch.allclose(last, without_attention)
    assert torch.equal(model.forward_intermediates(IMAGES, intermediates_only=True)[-1], last)
    features = timm.create_model("resnet18_mhsa", features_only=True).eval()
    features.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(features(IMAGES)[-1], last)
    assert features.feature_info.channels() == [64, 64, 128, 256, 512]


def test_mhsa_with_zeroed_projection_is_resnet18():
    torch.manual_seed(0)
    model = timm.create_model("resnet18_mhsa").eval()
    plain = timm.create_model("resnet18", num_classes=0).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "layer4.2" not in k})
    assert torch.equal(model(IMAGES), plain(IMAGES))


@pytest.mark.parametrize("arguments", [{"output_stride": 16}, {"in_chans": 4}, {"num_classes": 7}])
def test_mhsa_takes_timms_arguments(arguments):
    model = trained_mhsa(**arguments)
    channels = arguments.get("in_chans", 3)
    shape = model(torch.rand(2, channels, 64, 64)).shape
    assert shape == (2, arguments.get("num_classes", 512))


def test_mhsa_survives_pickle_and_export(jaxtyping_off):
    model = trained_mhsa()
    assert torch.equal(pickle.loads(pickle.dumps(model))(IMAGES), model(IMAGES))


def test_entry_cfg_never_copies_another_weights_facts():
    ours, theirs = entry_cfg("resnet18"), timm.get_pretrained_cfg("resnet18")
    assert theirs.test_input_size
    assert ours.test_input_size is None
    assert ours.origin_url is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ours.tag is None
