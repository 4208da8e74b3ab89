"""Derived settings, with the values of every situation written out."""

from dataclasses import replace
from typing import Any

import pytest

from pcd_hub.train.configs.distill import DERIVED, DistillConfig
from pcd_hub.train.configs.fields import check, options
from pcd_hub.train.configs.files import with_fields
from pcd_hub.train.own_images.rule import MIN_STEPS, derive, least_hours, steps_in_hours
from pcd_hub.train.own_images.situation import Situation

CPU: dict[str, Any] = {"device": "cpu", "cores": 2, "seconds_per_step": 3.0}
GPU: dict[str, Any] = {
    "device": "cuda",
    "cores": 12,
    "precision": "bf16",
    "memory": 80e9,
    "bytes_per_pixel": 500.0,
    "seconds_per_step": 0.25,
}
GPUS = {**GPU, "num_devices": 8}


def values(situation: Situation) -> dict[str, Any]:
    return {one.option: one.value for one in derive(situation)}


def reasons(situation: Situation) -> dict[str, str]:
    return {one.option: one.reason for one in derive(situation)}


@pytest.mark.parametrize(
    ("machine", "num_images", "batch", "lr_per_256", "queue", "steps"),
    [
        # 1 h on a CPU at 3 s a step: 1,140 steps
        (CPU, 50, 32, 0.016, 25, 800),  # 800 passes
        (CPU, 300, 32, 0.016, 128, 1140),
        (CPU, 5_000, 32, 0.016, 128, 1140),
        (CPU, 100_000, 32, 0.016, 128, 1140),
        (CPU, 1_300_000, 32, 0.016, 128, 1140),
        # 4 h on a GPU at 0.25 s a step: 54,720 steps, or 800 passes
        (GPU, 50, 8, 0.032, 25, 4_800),
        (GPU, 300, 64, 0.0113, 150, 3_200),
        (GPU, 5_000, 256, 0.004, 2500, 15_200),
        (GPU, 100_000, 256, 0.004, 50_000, 54_720),
        (GPU, 1_300_000, 256, 0.004, 65_536, 54_720),
        (GPUS, 50, 8, 0.032, 25, 4_800),
        (GPUS, 300, 64, 0.0113, 150, 3_200),
        (GPUS, 5_000, 1024, 0.001, 2500, 3_200),
        (GPUS, 100_000, 1024, 0.001, 50_000, 54_720),
        (GPUS, 1_300_000, 1024, 0.001, 65_536, 54_720),
    ],
)
def test_values_follow_images_and_device(machine, num_images, batch, lr_per_256, queue, steps):
    found = values(Situation(num_images=num_images, short_side=480, **machine))
    on_cpu = machine is CPU
    every, log = {3.0: (100, 10), 0.25: (1000, 100)}[machine["seconds_per_step"]]
    assert found == {
        "data.image_size": 96 if on_cpu else 224,
        "teacher.image_size": 128 if on_cpu else 224,
        "data.min_crop_area": 0.2,
        "data.num_workers": 1 if on_cpu else 11,
        "method.queue_length": queue,
        "method.head": "linear",
        "optim.name": "muon" if on_cpu else "adamw",
        "method.centre_targets": True,
        "optim.global_batch_size": batch,
        "optim.lr_per_256": lr_per_256,
        "optim.warmup_share": 0.05,
        "optim.weight_decay": 0.05,
        "speed.precision": "fp32" if on_cpu else "bf16",
        **({} if on_cpu else {"speed.compile": True}),
        "run.max_steps": steps,
        "run.checkpoint_every_steps": every,
        "run.log_every_steps": log,
    }
    config = with_fields(DistillConfig(), found)
    check(config)


def test_only_stated_options_are_derived():
    known = {option.key for option in options(DistillConfig())}
    assert known >= DERIVED
    found = set()
    for machine in (CPU, GPU):
        for given in ({}, {"run.max_steps": 100}):
            starts = {"has_shipped_start": True, "student_has_finer_map": True, "given": given}
            found |= set(values(Situation(num_images=300, short_side=480, **starts, **machine)))
    assert found == DERIVED


@pytest.mark.parametrize("option", sorted(DERIVED))
def test_a_given_value_is_not_derived(option):
    machine = CPU if option == "method.feature_maps" else GPU
    starts = {"has_shipped_start": True, "student_has_finer_map": True}
    s = Situation(num_images=300, short_side=480, **starts, **machine)
    found = values(replace(s, given={option: values(s)[option]}))
    assert option not in found


def test_given_values_enter_the_others():
    given = {"optim.global_batch_size": 128, "data.image_size": 64}
    found = values(Situation(num_images=3000, short_side=480, given=given, **CPU))
    assert found["optim.lr_per_256"] == 0.008  # 4e-3 at batch 128
    assert found["teacher.image_size"] == 96
    given = {"optim.name": "lars"}
    found = values(Situation(num_images=3000, short_side=480, given=given, **CPU))
    assert (found["optim.lr_per_256"], found["optim.weight_decay"]) == (1.0, 1e-5)
    given = {"data.image_size": (64, 128), "data.max_crop_area": 0.1}
    found = values(Situation(num_images=3000, short_side=480, given=given, **GPU))
    assert (found["teacher.image_size"], found["data.min_crop_area"]) == ((96, 160), 0.1)


@pytest.mark.parametrize(
    ("short_side", "machine", "size", "teacher"),
    [
        (8, CPU, 32, 32),
        (95, CPU, 64, 96),
        (96, CPU, 96, 128),
        (100, GPU, 96, 128),
        (160, GPU, 160, 224),
        (200, GPU, 192, 224),
        (30_000, GPU, 224, 224),
    ],
)
def test_views_are_no_larger_than_the_images(short_side, machine, size, teacher):
    found = values(Situation(num_images=300, short_side=short_side, **machine))
    assert (found["data.image_size"], found["teacher.image_size"]) == (size, teacher)


def test_sizes_are_multiples_of_the_patches():
    found = values(
        Situation(num_images=300, short_side=90, teacher_patch=14, student_patch=16, **CPU)
    )
    assert (found["data.image_size"], found["teacher.image_size"]) == (80, 112)  # 106.7 / 14 = 7.6
    given = {"data.image_size": 256}
    found = values(Situation(num_images=300, short_side=480, teacher_patch=14, given=given, **GPU))
    assert found["teacher.image_size"] == 252


def test_the_batch_fits_into_a_gpu_and_is_divisible_by_its_parts():
    def batch(**changes: Any) -> int:
        situation = Situation(num_images=100_000, short_side=480, **{**GPU, **changes})
        return values(situation)["optim.global_batch_size"]

    assert batch(memory=4e9) == 64  # 0.6 * 4e9 / (2 * 224**2 * 250) = 95
    assert batch(memory=None) == batch(bytes_per_pixel=None) == 256
    assert batch(memory=6e9, precision="fp32") == 64
    assert batch(num_devices=3) == 768
    assert batch(num_devices=12) == 768
    assert batch(num_devices=2, accumulation_steps=3) == 384
    few = Situation(num_images=10, short_side=480, **GPUS)
    assert values(few)["optim.global_batch_size"] == 8


def test_a_student_with_weights_trains_its_head_first():
    length = {"run.max_steps": 200}
    usual = values(Situation(num_images=300, short_side=480, given=length, **CPU))
    head_first = {"optim.head_only_share": 0.2, "optim.name": "adamw"}
    for weights in ("pretrained", "shipped"):
        given = {**length, "student.weights": weights}
        found = values(Situation(num_images=300, short_side=480, given=given, **CPU))
        assert found == {**usual, **head_first}
    found = values(
        Situation(num_images=300, short_side=480, has_shipped_start=True, given=length, **CPU)
    )
    assert found == {**usual, **head_first, "student.weights": "shipped"}


@pytest.mark.parametrize(("steps", "share"), [(400, 0.2), (500, 0.2), (1000, 0.1), (3000, 0.0333)])
def test_the_head_is_trained_alone_for_at_most_100_steps(steps, share):
    given = {"run.max_steps": steps}
    found = values(
        Situation(num_images=300, short_side=480, has_shipped_start=True, given=given, **CPU)
    )
    assert found["optim.head_only_share"] == share


def test_the_head_is_trained_alone_for_at_most_100_steps_of_many_epochs():
    given = {"optim.epochs": 100}  # 93 batches each
    s = Situation(num_images=3000, short_side=480, has_shipped_start=True, given=given, **CPU)
    assert values(s)["optim.head_only_share"] == 0.0108


def test_lars_whose_learning_rate_would_damage_a_start_gets_none():
    given = {"optim.name": "lars"}
    s = Situation(num_images=3000, short_side=480, has_shipped_start=True, given=given, **CPU)
    assert not values(s).keys() & {"student.weights", "optim.head_only_share"}


def test_a_student_may_start_at_random_although_there_is_a_shipped_weight():
    given = {"student.weights": "none"}
    s = Situation(num_images=300, short_side=480, has_shipped_start=True, given=given, **CPU)
    found = values(s)
    assert found["optim.name"] == "muon"
    assert not found.keys() & {"optim.head_only_share", "student.weights"}


@pytest.mark.parametrize(
    ("changes", "maps", "teacher"),
    [
        ({}, 2, 192),  # a teacher of stride 32: 6 x 6, as the finer map of 96 px
        ({"short_side": 64}, 2, 128),
        ({"teacher_patch": 16}, 2, 128),  # 8 x 8
        ({"student_has_finer_map": False}, None, 128),
        ({"given": {"method.targets": "pooled"}}, None, 128),
        ({"given": {"method.feature_maps": 1}}, None, 128),
        ({"given": {"method.feature_maps": 3}}, None, 192),
        ({**GPU, "short_side": 96}, 2, 192),
        (GPU, None, 224),  # a map of 7 x 7 would have no more detail at 14 x 14
        ({**GPU, "teacher_patch": 16}, 2, 224),
    ],
)
def test_a_finer_map_gets_a_finer_teacher(changes, maps, teacher):
    usual = {"num_images": 3000, "short_side": 480, "student_has_finer_map": True}
    found = values(Situation(**{**usual, **CPU, **changes}))
    assert (found.get("method.feature_maps"), found["teacher.image_size"]) == (maps, teacher)


def test_a_teacher_of_one_size_gets_it():
    machine = {**CPU, "num_images": 300, "short_side": 500}
    one = Situation(**machine, teacher_patch=16, teacher_size=224)
    assert values(one)["teacher.image_size"] == 224
    oblong = replace(one, given={"data.image_size": (96, 160)})
    assert values(oblong)["teacher.image_size"] == (224, 224)


def test_the_reason_of_the_teachers_size_says_how_much_larger_it_is():
    def reason(**given: Any) -> str:
        usual = {"num_images": 3000, "short_side": 480, "student_has_finer_map": True}
        return reasons(Situation(**usual, given=given, **CPU))["teacher.image_size"]

    assert reason() == "twice 96 px, for a finer feature map"
    assert reason(**{"method.feature_maps": 1}) == "4/3 of 96 px, for a finer feature map"
    larger = {"method.feature_maps": 2, "data.image_size": 128}
    assert reason(**larger) == "1.75 times 128 px, for a finer feature map"


def test_targets_are_centred_for_a_teacher_without_a_head():
    usual = {"num_images": 3000, "short_side": 480, **CPU}
    assert values(Situation(**usual))["method.centre_targets"] is True
    for changes in (
        {"teacher": "mocov3_r50:r-50.pth.tar", "teacher_has_head": True},
        {"teacher": "local-dir:head/teacher", "teacher_has_head": True},
        {"loss": "similarity_kl"},
    ):
        assert "method.centre_targets" not in values(Situation(**usual, **changes))


def test_a_single_layer_follows_a_head_that_is_not_moco_v3s():
    s = Situation(num_images=3000, short_side=480, teacher_has_head=True, **CPU)
    assert values(s)["method.head"] == "linear"
    assert reasons(s)["method.head"] == "learns faster than MLPs in short runs"


def test_loss_and_teacher_choose_head_and_queue():
    found = values(
        Situation(num_images=300, short_side=480, teacher="mocov3_r50:r-50.pth.tar", **CPU)
    )
    assert found["method.head"] == "mocov3"
    found = values(Situation(num_images=300, short_side=480, loss="similarity_kl", **CPU))
    assert found["method.head"] == "linear"
    assert "method.queue_length" not in found


def test_short_runs_on_gpus_are_not_compiled_and_have_a_short_queue():
    found = values(Situation(num_images=100_000, short_side=480, hours=0.1, **GPU))
    assert (found["speed.compile"], found["method.queue_length"]) == (False, 4096)


def test_a_stream_has_no_limit_by_images():
    found = values(Situation(num_images=None, short_side=480, hours=100, **CPU))
    assert (found["optim.global_batch_size"], found["method.queue_length"]) == (32, 128)
    assert found["run.max_steps"] == 114_000


@pytest.mark.parametrize("length", ["run.max_steps", "optim.epochs"])
def test_a_given_length_replaces_the_hours(length):
    machine = {**CPU, "seconds_per_step": None}
    found = values(Situation(num_images=300, short_side=480, given={length: 100}, **machine))
    assert "run.max_steps" not in found
    assert found["run.checkpoint_every_steps"] == 100


def test_hours_cover_the_time_before_the_first_step():
    s = Situation(num_images=None, short_side=480, hours=0.1, seconds_used=42.0, **CPU)
    steps = steps_in_hours(s, 32)
    assert steps.value == 100  # (0.95 * 360 - 42) / 3
    assert steps.reason == "0.1 h at 3 s a step"


@pytest.mark.parametrize("hours", [0.001, 0.01, 0.013])
def test_the_least_hours_give_the_fewest_steps(hours):
    s = Situation(num_images=300, short_side=480, hours=hours, seconds_used=20.0, **CPU)
    assert steps_in_hours(s, 32).value < MIN_STEPS
    assert least_hours(s) == 0.02
    enough = Situation(
        num_images=300, short_side=480, hours=least_hours(s), seconds_used=20.0, **CPU
    )
    assert steps_in_hours(enough, 32).value >= MIN_STEPS


def test_reasons_are_for_people():
    found = reasons(Situation(num_images=4_477, short_side=60, **GPUS))
    assert found["optim.global_batch_size"] == "at most 1,024"
    assert found["data.image_size"] == "the images are 60 px small (median)"
    assert found["method.queue_length"] == "half of 4,477 images"
    assert found["run.max_steps"] == "800 passes over 4,477 images"
    found = reasons(Situation(num_images=300, short_side=480, **GPU))
    assert found["optim.global_batch_size"] == "a quarter of 300 images"
    found = reasons(Situation(num_images=5_000, short_side=480, **CPU))
    assert found["run.max_steps"] == "1 h (the default) at 3 s a step"
