"""Names and settings of several students; mistakes are reported before anything is read."""

import pytest
import torch
from accelerate import Accelerator

from pcd_hub.errors import ConfigError, WeightError
from pcd_hub.train.configs.distill import DISTILL
from pcd_hub.train.configs.fields import check
from pcd_hub.train.configs.files import with_fields
from pcd_hub.train.own_images.settings import find_situation
from pcd_hub.train.students.configs import check_students, each_student

QUICKSTART = with_fields(DISTILL["quickstart"], {"student.arch": "test_resnet,test_vit"})


@pytest.mark.parametrize("arch", ["resnet18,resnet18", "resnet18,", ",", "a, a"])
def test_architectures_must_differ(arch):
    config = with_fields(QUICKSTART, {"student.arch": arch})
    with pytest.raises(ConfigError, match=f"--student.arch {arch}: expected different ones"):
        check(config)


def test_none_may_be_a_weight():
    with pytest.raises(ConfigError, match=r"arch resnet50\.a1: .* use resnet50$"):
        check(with_fields(QUICKSTART, {"student.arch": "resnet18,resnet50.a1"}))


def test_each_student_gets_a_weight_and_a_folder(tmp_path):
    assert check_students(QUICKSTART) == ("test_resnet.pcd_quickstart", "test_vit.pcd_quickstart")
    config = with_fields(QUICKSTART, {"run.name": "pcd_photos", "run.output_dir": tmp_path})
    assert check_students(config) == ("test_resnet.pcd_photos", "test_vit.pcd_photos")
    assert [one.run.output_dir for one in each_student(config)] == [
        tmp_path / "test_resnet",
        tmp_path / "test_vit",
    ]
    (alone,) = each_student(with_fields(config, {"student.arch": "test_vit"}))
    assert alone.run.output_dir == tmp_path


TWO_BANDS = {"data.bands": ("r", "nir"), "teacher.bands": ("nir", "r", "r")}


@pytest.mark.parametrize(
    ("config", "changes", "name"),
    [
        ("quickstart", {}, "resnet18.pcd_quickstart"),
        ("quickstart", {"data.source": ("photos",)}, "resnet18.pcd_quickstart"),
        ("quickstart", {"run.name": None}, "resnet18.pcd_quickstart"),
        ("quickstart", {"run.name": "resnet18.pcd"}, "resnet18.pcd"),
        ("own_images", {"data.source": ("photos",)}, "resnet18.pcd_own_images"),
        ("own_images", {"data.source": ("photos",), "run.name": None}, "resnet18.pcd"),
        ("own_images", {"run.name": "pcd_field", "student.arch": "resnet34"}, "resnet34.pcd_field"),
        ("own_images", TWO_BANDS, "resnet18.pcd_own_images_2bands"),
        ("own_images", TWO_BANDS | {"run.name": "pcd_x"}, "resnet18.pcd_x"),
        ("pcd_r18", {"data.source": ("imagenet",)}, "resnet18.pcd"),
        ("pcd_r18", {"data.source": ("scenes:9",)}, "resnet18.pcd_quickstart"),
    ],
)
def test_only_a_name_that_is_given_or_a_paper_like_run_is_plain(config, changes, name):
    assert check_students(with_fields(DISTILL[config], changes)) == (name,)


def test_a_full_name_names_one_weight_only():
    config = with_fields(QUICKSTART, {"run.name": "test_vit.pcd_photos"})
    with pytest.raises(ConfigError, match=r"names one weight, .* needs 2; use --run.name pcd_ph"):
        check_students(config)
    with pytest.raises(WeightError, match="'photos' is not a weight's name"):
        check_students(with_fields(QUICKSTART, {"run.name": "photos"}))


def test_trackers_with_one_run_for_each_process_are_refused():
    config = with_fields(QUICKSTART, {"run.trackers": ("tensorboard", "wandb")})
    with pytest.raises(ConfigError, match="--run.trackers wandb: it keeps one run"):
        check_students(config)
    check_students(with_fields(config, {"run.trackers": ("tensorboard",)}))
    check_students(with_fields(config, {"student.arch": "test_vit"}))


def situation(arch: str, given: tuple[str, ...] = ()):
    config = with_fields(DISTILL["own_images"], {"student.arch": arch})
    return find_situation(
        config, frozenset(given), num_images=300, short_side=0, accelerator=Accelerator(cpu=True)
    )


def test_the_image_size_suits_all_students():
    assert situation("vit_tiny_patch16_224").student_patch == 16
    assert situation("resnet18,vit_tiny_patch16_224").student_patch == 32
    both = "vit_small_patch14_dinov2,resnet18"
    with pytest.raises(ConfigError, match="in steps of vit_small_patch14_dinov2 14, resnet18 32"):
        situation(both)
    assert situation(both, ("data.image_size",)).student_patch == 224


def test_own_state_keeps_random_numbers_scaler_and_trackers_apart():
    from pcd_hub.train.students.own_state import OwnState

    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    torch.manual_seed(1)
    first = OwnState(accelerator)
    expected = torch.rand(4)
    torch.manual_seed(2)
    second = OwnState(accelerator)
    drawn = []
    for state in (first, second, first):
        with state.in_use():
            drawn.append(torch.rand(2))
            accelerator.trackers.append(state)
            accelerator.scaler.scale(torch.ones(1))
            accelerator.scaler.update(accelerator.scaler.get_scale() * 2)
    assert torch.equal(torch.cat([drawn[0], drawn[2]]), expected)
    assert accelerator.scaler.get_scale() == 8.0
    assert accelerator.trackers == []
    with first.in_use():
        assert accelerator.scaler.get_scale() == 32.0
        assert accelerator.trackers == [first, first]


def test_a_run_may_not_replace_its_own_start():
    name = "test_vit.pcd_own_images"
    config = with_fields(
        DISTILL["own_images"], {"student.arch": "test_vit", "student.weights": name}
    )
    with pytest.raises(ConfigError, match=rf"would replace its own start {name} .*--run.name"):
        check_students(config)
    assert check_students(with_fields(config, {"run.name": "pcd_2"})) == ("test_vit.pcd_2",)
    assert check_students(with_fields(config, {"run.store": False})) == (name,)
