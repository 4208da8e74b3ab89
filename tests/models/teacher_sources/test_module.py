from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from pcd_hub.errors import TeacherError
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.models.teacher_sources.matching import match_teacher
from pcd_hub.models.teacher_sources.module import teacher_from_module

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


class Tokens(nn.Module):
    """Patch tokens after a number of others, as a ViT returns them."""

    def __init__(self, prefix: int = 0, wrap=lambda tokens: tokens):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.prefix, self.wrap = prefix, wrap

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        others = torch.full((len(images), self.prefix, 8), 7.0)
        return self.wrap(torch.cat([others, tokens], 1))


WRAPPERS = {
    "a tensor": lambda tokens: tokens,
    "a model output": lambda tokens: SimpleNamespace(last_hidden_state=tokens, pooler_output=0),
    "a dict": lambda tokens: {"last_hidden_state": tokens, "pooler_output": tokens[:, 0]},
    "a tuple": lambda tokens: (tokens, tokens[:, 0]),
    "torch.hub's dict": lambda tokens: {
        "x_norm_clstoken": tokens[:, 0],
        "x_norm_patchtokens": tokens,
        "x_prenorm": tokens + 1,
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_become_a_map(wrapper, prefix):
    module = Tokens(prefix, WRAPPERS[wrapper])
    teacher = teacher_from_module(module, mean=MEAN, std=STD)
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(teacher(images), module.patches((images - mean) / std))
    assert teacher.num_channels == 8


def test_the_number_of_other_tokens_may_be_given():
    module = Tokens(9)  # 4 x 4 + 9 is a square as well
    small = {"mean": MEAN, "std": STD, "image_size": 64}
    assert teacher_from_module(module, **small).grid_size(64) == (5, 5)
    assert teacher_from_module(module, **small, num_prefix_tokens=9).grid_size(64) == (4, 4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda maps: maps,
        lambda maps: maps.permute(0, 2, 3, 1),
        lambda maps: {"a": maps[:, :4], "out": maps, "aux": maps[:, :2]},
        lambda maps: {"0": maps[:, :4], "1": maps},
        lambda maps: [maps[:, :4], maps],
        lambda maps: (maps, maps.mean((2, 3))),
    ],
    ids=["NCHW", "NHWC", "dict", "stages by name", "stages", "with pooled"],
)
def test_maps_are_found(wrap):
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 8, 8)

        def forward(self, images):
            return wrap(self.stem(images))

    teacher = teacher_from_module(Maps(), mean=MEAN, std=STD, image_size=40)
    assert teacher(torch.rand(2, 3, 40, 40)).shape == (2, 6, 5, 5)


def test_a_timm_model_is_taken_before_its_classifier():
    model = timm.create_model("test_vit", num_classes=10)
    teacher = teacher_from_module(model, mean=MEAN, std=STD, image_size=160)
    assert teacher(torch.rand(1, 3, 160, 160)).shape == (1, 64, 10, 10)


def test_it_is_frozen_and_its_facts_are_stated():
    module = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4)).train().half()
    teacher = teacher_from_module(module, mean=MEAN, std=STD, name="mine", license="mit")
    assert not any(one.training for one in module.modules())
    assert not any(one.requires_grad for one in module.parameters())
    assert module[0].weight.dtype == torch.float32
    facts = teacher.facts
    assert (facts.source, facts.architecture, facts.head) == ("module:mine", "mine", "none")
    assert (facts.mean, facts.std, facts.license) == (MEAN, STD, "mit")
    with torch.no_grad():
        module[1].running_mean += 1
    other = teacher_from_module(module, mean=MEAN, std=STD)
    assert other.facts.sha256 != facts.sha256
    assert other.facts.source == "module:Sequential"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (timm.create_model("test_resnet").fc, "fails on images .* expected a module that takes"),
        (nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten()), r"output is a tensor \(2, \d+\), exp"),
        (Tokens(wrap=lambda tokens: {"logits": tokens[:, 0]}), r"a dict \(logits: a tensor \(2, 8"),
        (Tokens(wrap=lambda tokens: None), "its output is a NoneType"),
        (Tokens(wrap=lambda tokens: tokens[:, :99]), r"no spatial feature map: .* \(2, 99, 8\)"),
        (nn.Identity(), "has no parameters"),
    ],
    ids=["no images", "pooled", "logits", "nothing", "not a grid", "no weights"],
)
def test_other_outputs_are_refused_in_one_line(module, message):
    with pytest.raises(TeacherError, match=message) as refused:
        teacher_from_module(module, mean=MEAN, std=STD)
    assert str(refused.value).startswith("module:")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), STD), (MEAN, (0.5, 0.5)), (MEAN, (0, 1, 1)), (MEAN, (1, 1, 1e9))]
)
def test_mean_and_std_are_checked(mean, std):
    with pytest.raises(TeacherError, match="expected three numbers"):
        teacher_from_module(Tokens(), mean=mean, std=std)


def test_a_normalisation_of_images_from_0_to_255_is_refused():
    with pytest.raises(TeacherError, match=r"to 255, expected those from 0 to 1: \(0.4824, 0.4"):
        teacher_from_module(Tokens(), mean=(123.0, 116.0, 103.0), std=(58.0, 57.0, 57.0))


def test_the_size_is_matched_without_loading_again():
    student = nn.Sequential(nn.Conv2d(3, 4, 32, 32))
    teacher = teacher_from_module(Tokens(1), mean=MEAN, std=STD)
    matched = match_teacher(teacher, student, image_size=256, teacher_image_size="match")
    assert matched.input_size == 128
    assert matched(torch.rand(1, 3, 256, 256)).shape == (1, 8, 8, 8)
    fixed = timm.create_model("vit_tiny_patch16_224", depth=1)
    teacher = teacher_from_module(fixed, mean=MEAN, std=STD)
    with pytest.raises(TeacherError, match="cannot take images of 96 px .*--teacher.image-size"):
        match_teacher(teacher, student, image_size=96)


def test_its_source_cannot_be_loaded():
    with pytest.raises(TeacherError, match="module that was given in Python: pass it again"):
        load_teacher("module:mine")
