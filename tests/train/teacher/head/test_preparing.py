"""Mistakes that are reported before anything is computed or written."""

import dataclasses

import pytest
from accelerate import Accelerator

from pcd_hub.data.sources.open import Scenes
from pcd_hub.errors import ConfigError, DataError, TeacherError
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.models.teacher_sources import memory
from pcd_hub.train.teacher.cache.key import cache_facts, cache_name
from pcd_hub.train.teacher.head import fit
from pcd_hub.train.teacher.head.config import FIT_HEAD, HeadDataConfig, parse_fit_head
from pcd_hub.train.teacher.head.preparing import split
from tests.train.teacher.head.conftest import headless

MISTAKES = [
    (["--data.source=scenes:70"], "images are given twice"),
    (["--optim.global-batch-size=1"], "global-batch-size 1: expected an integer >= 2"),
    (["--optim.accumulation-steps=2"], "accumulation-steps 2: expected 1, as the loss"),
    (["--data.bands", "gray"], "bands gray: expected red green blue"),
    (["--optim.global-batch-size=64"], "70 images, 60 of them to train on, fewer than one batch"),
    (["--teacher.mean=0.5", "0.5", "0.5"], "mean is set without"),
    (["--data.view-epochs=0"], "view-epochs 0: expected an integer from 1 to 64"),
    (["--teacher=quickstart"], r"quickstart has a head \(Linear-.*\), expected a teacher without"),
    (["--teacher="], "no teacher is given; expected --teacher SOURCE"),
    (["--teacher=timm:nothing"], "timm has no model 'nothing'"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_a_mistake_is_reported_in_one_line(tiny_head, tmp_path, options, message):
    with pytest.raises((ConfigError, DataError, TeacherError), match=message) as error:
        fit.main([*tiny_head, f"--output-dir={tmp_path / 'run'}", *options])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_images_are_needed_and_no_stream(tiny_head, tmp_path, monkeypatch):
    more = [*tiny_head[1:], f"--output-dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match="no images are given"):
        fit.main(more)
    with pytest.raises(DataError, match="scenes:19 has 19 images, expected at least 20"):
        fit.main(["scenes:19", *more])
    monkeypatch.setattr("pcd_hub.train.teacher.head.preparing.open_sources", lambda _: object())
    with pytest.raises(DataError, match="photos.tgz is a stream: expected a finite set"):
        fit.main(["photos.tgz", *more])


def test_several_processes_are_refused(tiny_head, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr("pcd_hub.train.launch._check_that_all_were_launched", lambda _: None)
    with pytest.raises(ConfigError, match="2 processes: expected 1, as a head takes minutes"):
        fit.main([*tiny_head, f"--output-dir={tmp_path / 'run'}"])


def test_a_teacher_that_does_not_fit_into_memory_is_refused(tiny_head, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_host_memory", lambda: 10**6)
    with pytest.raises(TeacherError, match="for its weights, but .*use a smaller teacher"):
        fit.main([*tiny_head, f"--output-dir={tmp_path / 'run'}"])


def test_a_network_that_timm_builds_otherwise_is_refused(tiny_head, tmp_path):
    """Its folder could not be loaded again."""
    folder = headless(tmp_path / "vit", "test_vit", size=32, global_pool="avg")
    with pytest.raises(TeacherError, match="cannot be stored with a head, as timm's test_vit w"):
        fit.main([*tiny_head, f"--teacher=local-dir:{folder}", f"--output-dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_held_out_images_are_decided_by_their_names():
    class Reversed(Scenes):
        def name(self, index):
            return str(self.count - 1 - index)

    training, held_out = split(Scenes(300, seed=0), 0.1)
    assert sorted([*training, *held_out]) == list(range(300))
    assert len(held_out) == 30
    other = split(Reversed(300, seed=0), 0.1)[1]
    assert sorted(299 - other) == held_out.tolist()
    assert len(split(Scenes(20, seed=0), 0.1)[1]) == 10
    assert len(split(Scenes(30_000, seed=0), 0.5)[1]) == 2000


def test_features_are_shared_only_if_teacher_images_and_views_are_the_same(resnet):
    def name(*, teacher=None, scenes=30, seed=0, precision="fp32", **data) -> str:
        data = HeadDataConfig(source=("scenes:30",), image_size=32, **data)
        images = Scenes(scenes, seed=0)
        facts = cache_facts(
            teacher or own,
            data,
            images=images.fingerprint(),
            num_images=len(images),
            values="pooled float16",
            view_seed=seed,
            precision=precision,
        )
        return cache_name(facts)

    own, other = (load_teacher(resnet, image_size=32) for _ in range(2))
    other.facts = dataclasses.replace(other.facts, sha256="0" * 64)
    assert name() == name()
    names = [
        *(name(), name(teacher=other), name(scenes=31), name(seed=1), name(precision="bf16")),
        *(name(view_epochs=3), name(min_crop_area=0.5), name(augment="light")),
    ]
    assert len({*names}) == len(names)


def test_the_images_come_before_the_options():
    name, config = parse_fit_head(["head", "photos", "more", "--teacher", "timm:test_resnet"])
    assert name == "head"
    assert config.data.source == ("photos", "more")
    assert config.teacher.source == "timm:test_resnet"
    assert dataclasses.replace(config, data=FIT_HEAD["head"].data).optim == FIT_HEAD["head"].optim
