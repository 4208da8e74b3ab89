"""Every form of --student.weights, and what is refused."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from pcd_hub.errors import HubError, PCDHubError, StudentError, WeightError
from pcd_hub.models.entries import entry_cfg
from pcd_hub.train.configs.command_line import parse
from pcd_hub.train.configs.distill import DISTILL
from pcd_hub.train.networks import build_backbone
from pcd_hub.train.student.normalisation import adapt_normalisation
from pcd_hub.train.student.weights import load_start
from pcd_hub.weights import shipped, store
from pcd_hub.weights.input_bands import InputBands
from tests.hub.server import LoopbackHub
from tests.hub.surroundings import point_client_at, settle
from tests.models.test_teachers import timm_folder
from tests.weights.making import exported, files_of

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def start(
    weights: str, architecture: str = "test_resnet", image_size: int = 64, **options: Any
) -> tuple[Any, Any]:
    """Return a student and the facts about its start; the random state must not change."""
    bands = options.get("bands")
    if bands is None:
        model: Any = build_backbone(architecture, image_size=image_size).model
    else:
        model = timm.create_model(architecture, num_classes=0, in_chans=len(bands.names))
    before = torch.get_rng_state()
    facts = load_start(model, weights, architecture=architecture, image_size=image_size, **options)
    assert torch.equal(torch.get_rng_state(), before)
    return model, facts


def assert_same_features(model: Any, other: Any) -> None:
    with torch.no_grad():
        one, two = (m.eval().forward_features(IMAGES) for m in (model, other))
    assert torch.equal(one, two)


@pytest.fixture
def trained():
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=0)


def test_the_shipped_weight_is_that_of_the_package_whatever_the_store_has(trained, tmp_path):
    exported(shipped.FOLDER / "test_resnet.pcd", model=trained)
    store.add("test_resnet.pcd", exported(tmp_path / "other"))
    model, facts = start("shipped")
    assert_same_features(model, trained)
    assert (facts.source, facts.name) == ("shipped", "test_resnet.pcd")
    assert facts.license == "apache-2.0"


def test_a_folder_of_that_name_is_not_the_shipped_weight(trained, tmp_path, monkeypatch):
    exported(shipped.FOLDER / "test_resnet.pcd", model=trained)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped").mkdir(exist_ok=True)
    model, _ = start("shipped")
    assert_same_features(model, trained)


def test_an_architecture_without_a_shipped_weight_is_named():
    (shipped.FOLDER / "resnet18.pcd").mkdir(parents=True)
    expected = (
        "--student.weights shipped: pcd_hub ships no weight of test_resnet, only resnet18.pcd"
    )
    with pytest.raises(StudentError, match=re.escape(expected)):
        start("shipped")


def test_none_is_random():
    torch.manual_seed(0)
    model, facts = start("none")
    torch.manual_seed(0)
    assert facts is None
    assert_same_features(model, build_backbone("test_resnet", image_size=64).model)


@pytest.mark.parametrize("of_a_run", [True, False])
def test_an_export_is_verified(tmp_path, trained, of_a_run):
    folder = exported(tmp_path / "run" / "export", model=trained)
    if of_a_run:
        (tmp_path / "run" / "record.json").write_text("{}")
    source = f"local-dir:{tmp_path / 'run' if of_a_run else folder}"
    model, facts = start(source)
    assert_same_features(model, trained)
    assert (facts.name, facts.license, facts.hub_id) == ("test_resnet.pcd", "apache-2.0", "")
    assert len(facts.sha256) == len(facts.record_sha256) == 64
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightError, match="^--student.weights local-dir:"):
        start(source)


def test_a_weight_in_the_store_is_found_by_name(tmp_path, trained):
    store.add("test_resnet.pcd_mine", exported(tmp_path / "export", model=trained))
    model, facts = start("test_resnet.pcd_mine")
    assert_same_features(model, trained)
    assert facts.source == "test_resnet.pcd_mine"
    assert facts.hub_id == ""


def test_a_folder_in_timms_layout_keeps_its_licence(tmp_path):
    folder = timm_folder(tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    cfg = entry_cfg("test_resnet")
    config["pretrained_cfg"] |= {"license": "mit", "mean": cfg.mean, "std": cfg.std}
    (folder / "config.json").write_text(json.dumps(config))
    model, facts = start(f"local-dir:{folder}")
    assert_same_features(model, timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert (facts.name, facts.license) == ("mine", "mit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.5, 0.5]}, r"its images have mean \(0.5, 0.5\) and std .*; expected a number"),
        ({"std": [0.5, 0.5, 0]}, "std > 0"),
        ({"std": 3}, "expected a number"),
        ({"mean": ["a", 0, 0]}, "expected a number for each channel"),
    ],
)
def test_a_strangers_configuration_is_checked(tmp_path, changes, message):
    folder = timm_folder(tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"license": [1], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StudentError, match=f"^--student.weights local-dir:.*({message})"):
        start(f"local-dir:{folder}")


def test_a_variant_of_the_architecture_is_refused(tmp_path):
    variant = timm.create_model("test_resnet", num_classes=0, stem_width=24)
    folder = timm_folder(tmp_path / "mine", model_args={"stem_width": 24})
    save_file(variant.state_dict(), folder / "model.safetensors")
    with pytest.raises(StudentError, match="mine: it does not fit timm's test_resnet: "):
        start(f"local-dir:{folder}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as hub:
        point_client_at(hub, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub
        settle()


def test_timms_weights_are_loaded_by_tag_and_by_default(tmp_path, hub):
    whole = timm.create_model("test_resnet")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    content = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    hub.add_repo("timm/test_resnet.r160_in1k", content)
    for weights in ("pretrained", "test_resnet", "test_resnet.r160_in1k", "timm:test_resnet"):
        model, facts = start(weights)
        assert facts.source == facts.name == "test_resnet.r160_in1k"
        assert facts.hub_id == "timm/test_resnet.r160_in1k"
        assert facts.license == "apache-2.0"
    state = whole.state_dict()
    assert torch.equal(model.state_dict()["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])


def test_repositories_on_the_hub_are_loaded(tmp_path, hub, trained):
    hub.add_repo("org/test_resnet.pcd", files_of(exported(tmp_path / "export", model=trained)))
    hub.add_repo("org/mine", files_of(timm_folder(tmp_path / "timm")))
    model, facts = start("org/test_resnet.pcd")
    assert_same_features(model, trained)
    assert (facts.hub_id, facts.name) == ("org/test_resnet.pcd", "test_resnet.pcd")
    _, facts = start("hf-hub:org/mine")
    assert (facts.hub_id, facts.license) == ("org/mine", "not stated")
    with pytest.raises(HubError, match="^--student.weights org/none: "):
        start("org/none")
    with pytest.raises(StudentError, match="^--student.weights hf-hub:org/none: cannot load it"):
        start("hf-hub:org/none")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pt", "x.bin", "x.ckpt", "x.pth.tar"])
def test_a_checkpoint_of_ones_own_is_read(tmp_path, trained, name, caplog):
    caplog.set_level("INFO", logger="pcd_hub")
    state = {f"backbone.{key}": value.half() for key, value in trained.state_dict().items()}
    state |= {"head.weight": torch.zeros(3, 96)}
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / name)
    model, facts = start(str(tmp_path / name))
    expected = trained.half().float()
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in model.state_dict().items())
    assert facts.name == name
    assert facts.license == "not stated"
    assert facts.unused.endswith("head.* (1)")
    assert "backbone is below" in caplog.text
    assert "head.* (1)" in caplog.text


def test_a_file_of_a_fixed_size_architecture_is_resampled(tmp_path):
    model: Any = timm.create_model("test_vit", num_classes=0, img_size=160)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    student, _ = start(str(tmp_path / "vit.pth"), "test_vit", image_size=64)
    assert student.pos_embed.shape[1] < model.pos_embed.shape[1]
    assert torch.equal(student.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    same, _ = start(str(tmp_path / "vit.pth"), "test_vit", image_size=160)
    assert torch.equal(same.pos_embed, model.pos_embed)


def bands_named(*names: str) -> InputBands:
    return InputBands(names, (0.5,) * len(names), (0.2,) * len(names))


OTHER_BANDS = bands_named("red", "green", "blue", "nir")


@pytest.fixture
def of_other_bands(tmp_path) -> str:
    """A weight for images of four bands with values from 0 to 4000."""
    model = timm.create_model("test_resnet", num_classes=0, in_chans=4)
    data = {"source": "fields", "bands": list(OTHER_BANDS.names), "band_range": [0.0, 4000.0]}
    return str(exported(tmp_path / "bands", model=model, bands=OTHER_BANDS, data=data))


def test_a_start_of_the_same_bands_is_taken_in_silence(of_other_bands, caplog):
    start(of_other_bands, bands=OTHER_BANDS, band_range=(0.0, 4000.0))
    assert not caplog.text


def test_a_start_of_the_same_bands_in_another_range_or_normalisation_is_warned_of(
    of_other_bands, caplog
):
    start(of_other_bands, bands=OTHER_BANDS, band_range=(0.0, 8000.0))
    assert "with --data.band-range 0.0 4000.0, this run has 0.0 8000.0; its first" in caplog.text
    other = OTHER_BANDS._replace(mean=(0.4,) * 4)
    start(of_other_bands, bands=other, band_range=(0.0, 4000.0))
    assert "with mean (0.5, 0.5, 0.5, 0.5) and std" in caplog.text


@pytest.mark.parametrize("names", [("nir", "red", "green", "blue"), ("a", "b"), (), ("gray",)])
def test_a_start_of_other_bands_is_refused(of_other_bands, names):
    message = "it was trained on the bands red green blue nir, this run has --data.bands"
    with pytest.raises(StudentError, match=message):
        start(of_other_bands, bands=bands_named(*names) if names else None)


def test_an_rgb_start_for_other_bands_is_warned_of(trained, tmp_path, caplog):
    start(str(exported(tmp_path / "rgb", model=trained)), bands=OTHER_BANDS)
    assert "to the number of the bands red green blue nir, not to what they show" in caplog.text


@pytest.mark.parametrize("in_chans", [1, 5])
def test_input_channels_are_adapted_as_timm_does(tmp_path, trained, in_chans):
    torch.save(trained.state_dict(), tmp_path / "rgb.pth")
    bands = bands_named(*"abcde"[:in_chans])
    of_file, _ = start(str(tmp_path / "rgb.pth"), bands=bands)
    of_folder, _ = start(f"local-dir:{exported(tmp_path / 'export', model=trained)}", bands=bands)
    weight = of_file.conv1[0].weight
    assert weight.shape[1] == in_chans
    assert torch.equal(weight, of_folder.conv1[0].weight)


def with_nan(state: dict) -> dict:
    key = next(iter(state))
    return state | {key: torch.full_like(state[key], float("nan"))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "conv1.0.weight": torch.zeros(2, 3, 3, 3)}, r"conv1.0.weight \(2, 3, 3, "),
        (lambda s: {**s, "conv1.0.weight": s["conv1.0.weight"].int()}, "conv1.0.weight .* int32"),
        (lambda s: dict(list(s.items())[:-9]), "tensors are missing from the file"),
        (with_nan, "conv1.0.weight holds NaN or infinity"),
    ],
)
def test_unlike_weights_are_refused_with_the_first_names(tmp_path, trained, change, message):
    torch.save(change(trained.state_dict()), tmp_path / "x.pth")
    with pytest.raises(StudentError, match=f"^--student.weights .*x.pth: .*{message}"):
        start(str(tmp_path / "x.pth"))


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.mkdir, (self.path,))


@pytest.mark.parametrize("name", ["x.pth", "x.ckpt", "x.bin", "x.safetensors"])
def test_code_in_a_file_is_not_run(tmp_path, name):
    torch.save({"state_dict": {"conv1.0.weight": _Code(tmp_path / "ran")}}, tmp_path / name)
    with pytest.raises(StudentError, match="no checkpoint of plain tensors"):
        start(str(tmp_path / name))
    (tmp_path / name).write_bytes(pickle.dumps(_Code(tmp_path / "ran")))
    with pytest.raises(StudentError, match="no checkpoint of plain tensors"):
        start(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nothing", "no such file or weight; expected none, shipped, auto, pretrained, a"),
        ("nothing.pth", "no such file; expected none, shipped, auto"),
        ("resnet18.a1_in1k", "it is a resnet18, --student.arch is test_resnet; expected weights"),
        ("test_resnet.a1", "timm has no weights test_resnet.a1; expected one of test_resnet.r160"),
        ("test_resnet.pcd_unknown", "there is no weight test_resnet.pcd_unknown"),
        ("local-dir:nowhere", "cannot load it: "),
        ("\x1b[31m.pth", r"^--student.weights \?\[31m.pth: no such file"),
    ],
)
def test_a_name_without_weights_of_the_architecture_is_refused(weights, message):
    with pytest.raises(PCDHubError, match=message) as refused:
        start(weights)
    assert str(refused.value).startswith("--student.weights ")
    assert "\n" not in str(refused.value)


def test_another_architecture_is_refused_with_both_names(tmp_path):
    export = exported(tmp_path / "export", "resnet18")
    timms = timm_folder(tmp_path / "timm", "resnet18")
    for name in (f"local-dir:{export}", str(export), f"local-dir:{timms}"):
        with pytest.raises(StudentError, match="it is a resnet18, --student.arch is test_resnet"):
            start(name)
    with pytest.raises(WeightError, match="there is no weight resnet18_mhsa.pcd"):
        start("pretrained", "resnet18_mhsa")


def test_an_empty_name_is_refused_on_the_command_line():
    with pytest.raises(
        PCDHubError, match=r"^--student.weights '': expected none, shipped, auto, pretrained"
    ):
        parse(DISTILL, "quickstart", ["--student.weights="])


@pytest.mark.parametrize(("architecture", "exact"), [("test_vit", True), ("test_resnet", False)])
def test_another_normalisation_is_absorbed_by_the_first_layer(architecture, exact):
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    size = 160 if architecture == "test_vit" else 64
    images = torch.rand(2, 3, size, size)
    model: Any = timm.create_model(architecture, num_classes=0).eval()
    cfg = entry_cfg(architecture)

    def features(mean: Any, std: Any) -> torch.Tensor:
        mean, std = (torch.as_tensor(value).view(3, 1, 1) for value in (mean, std))
        with torch.no_grad():
            return model.forward_features((images - mean) / std)

    expected, unadapted = features(mean, std), features(cfg.mean, cfg.std)
    adapt_normalisation(model, cfg, mean=mean.tolist(), std=std.tolist())
    error = (features(cfg.mean, cfg.std) - expected).abs().max()
    assert error < 1e-4 if exact else error < (unadapted - expected).abs().max()
