"""A backbone by one string."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from pcd_hub.errors import ConfigError, StudentError, WeightError
from pcd_hub.evaluate.models import check_models, for_each_seed, known_sha256, open_model
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.weights import store
from pcd_hub.weights.input_bands import InputBands
from pcd_hub.weights.manifest import sha256
from tests.weights.making import exported, flip, same_tensors


@pytest.fixture
def export(tmp_path):
    return exported(tmp_path / "export")


def test_our_weights_by_folder_and_by_name(export):
    store.add("test_resnet.pcd", export)
    for name in (f"local-dir:{export}", "test_resnet.pcd"):
        found = open_model(name)
        assert found.name == name
        assert found.weights_sha256 == sha256(export / "model.safetensors")
        tensors = load_file(export / "model.safetensors")
        assert all(torch.equal(v, tensors[k]) for k, v in found.model.state_dict().items())
        assert len(open_model(name, features_only=True).model(torch.zeros(1, 3, 64, 64))) == 5
    flip(export / "model.safetensors")
    with pytest.raises(WeightError, match="sha256"):
        open_model(f"local-dir:{export}")


def test_a_folder_of_timm_is_loaded_by_timm(export):
    (export / "pcd_manifest.json").unlink()
    found = open_model(f"local-dir:{export}")
    assert found.weights_sha256 is None
    assert known_sha256(f"local-dir:{export}") == sha256(export / "model.safetensors")
    assert found.mean == timm.get_pretrained_cfg("resnet18").mean


def test_a_random_start_follows_its_seed_and_nothing_else():
    before = torch.get_rng_state()
    one = open_model("random:test_resnet", seed=1).model
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert same_tensors(one, open_model("random:test_resnet", seed=1).model)
    assert not same_tensors(one, open_model("random:test_resnet", seed=2).model)


def test_a_teacher_is_its_backbone(tiny_teacher):
    name = f"teacher:local-dir:{tiny_teacher}"
    found, teacher = open_model(name), load_teacher(f"local-dir:{tiny_teacher}")
    assert same_tensors(found.model, teacher.grid.model)
    assert (found.mean, found.std) == (teacher.facts.mean, teacher.facts.std)
    pyramid = open_model(name, features_only=True, out_indices=(2, 3)).model.eval()
    images = torch.randn(1, 3, 64, 64)
    maps = teacher.grid.model.forward_intermediates(images, intermediates_only=True)
    for one, other in zip(pyramid(images), maps[2:4], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("random:resnet81", StudentError, "no architecture 'resnet81'; did you mean 'resnet18'"),
        ("resnet81.a1_in1k", StudentError, "no architecture 'resnet81'"),
        ("resnet18.a1_in1k", StudentError, "cannot load resnet18.a1_in1k .*use random:resnet18"),
        ("resnet34.pcd", WeightError, "there is no weight resnet34.pcd"),
        ("local-dir:/nowhere", StudentError, "cannot load local-dir:/nowhere .FileNotFoundError"),
        ("org/resnet18.pcd", WeightError, "was not fetched"),
    ],
)
def test_what_cannot_be_opened_says_why(name, error, message):
    with pytest.raises(error, match=message):
        open_model(name)


@pytest.mark.parametrize(("name", "times"), [("random:test_resnet", 3), ("teacher:quickstart", 1)])
def test_only_a_random_start_is_prepared_again(name, times):
    prepared = []
    runs = list(for_each_seed(name, (4, 5, 6), prepared.append, image_size=64))
    assert len(prepared) == times
    assert [seed for seed, _, _ in runs] == [4, 5, 6]


def test_models_and_seeds_are_named_once():
    check_models(("test_resnet", "random:test_resnet"), (0, 1))
    for models, seeds in (((), (0,)), (("a", "a"), (0,)), (("a",), ()), (("a",), (1, 1))):
        with pytest.raises(ConfigError, match="expected at least one, and none twice"):
            check_models(models, seeds)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("random:resnet81", StudentError, "no architecture 'resnet81'; did you mean 'resnet"),
        ("resnet81.a1_in1k", StudentError, "no architecture 'resnet81'; did you mean 'resnet"),
        ("resnet18.a1_in1kk", StudentError, "did you mean 'resnet18.a1_in1k'"),
        ("local-dir:/no/such", StudentError, "no such folder; expected an export"),
        ("test_vit.pcd_mine", WeightError, "neither on this machine nor published"),
    ],
)
def test_a_wrong_name_is_an_error_before_a_model_is_loaded(name, error, message):
    with pytest.raises(error, match=message):
        check_models(("random:test_resnet", name), (0,))


def test_a_fixed_size_weight_takes_the_size_given(tmp_path):
    model = timm.create_model("test_vit", num_classes=0, img_size=96)
    export = exported(tmp_path / "vit", "test_vit", model, image_size=96)
    opened = open_model(f"local-dir:{export}", image_size=64).model
    assert opened.eval()(torch.zeros(1, 3, 64, 64)).shape[0] == 1


def test_the_hash_of_a_model_is_known_without_loading_it(export, tmp_path):
    own = sha256(export / "model.safetensors")
    assert known_sha256(f"local-dir:{export}") == own
    store.add("test_resnet.pcd", export)
    assert known_sha256("test_resnet.pcd") == own
    (tmp_path / "empty").mkdir()
    for name in ("random:resnet18", "resnet18.a1_in1k", f"local-dir:{tmp_path / 'empty'}"):
        assert known_sha256(name) is None
    assert known_sha256("hf-hub:org/net") is None
    assert known_sha256("test_resnet.pcd_missing") is None


@pytest.mark.parametrize("names", [("nir", "red", "green"), ("red", "green", "blue", "nir")])
def test_a_weight_of_other_bands_is_refused_before_anything_is_measured(tmp_path, names):
    """Also one of three bands, which a probe would read as red, green and blue."""
    bands = InputBands(names, (0.5,) * len(names), (0.2,) * len(names))
    model = timm.create_model("test_resnet", num_classes=0, in_chans=len(names))
    data = {"source": "fields", "bands": list(names)}
    folder = exported(tmp_path / "export", model=model, bands=bands, data=data)
    store.add("test_resnet.pcd_bands", folder)
    for name in ("test_resnet.pcd_bands", f"local-dir:{folder}"):
        for refuse in (open_model, lambda name: check_models([name], (0,))):
            with pytest.raises(StudentError, match=f"takes images of the bands {' '.join(names)};"):
                refuse(name)
