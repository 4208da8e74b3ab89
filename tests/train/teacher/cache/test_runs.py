"""Runs with a cache, compared with runs that ask the teacher at every step."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.errors import CheckpointError, ConfigError
from pcd_hub.models.teachers import Teacher
from pcd_hub.train import distill
from pcd_hub.train.distillation import caching
from pcd_hub.train.teacher.cache.folders import list_caches
from pcd_hub.train.teacher.cache.store import CHECKSUMS, RECORDS
from tests.processes import free_ports, start_processes
from tests.train.conftest import assert_same, image_folder, run, trace

pytestmark = pytest.mark.usefixtures("no_pictures")

PER_EPOCH = 4
"""Steps in which every one of 32 images is used once."""
TOLERANCE = 3e-3
"""Largest relative difference of the losses, as a record keeps 8 bits of each value."""


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory):
    """Three epochs of 32 images, whose views repeat after the second."""
    images = image_folder(tmp_path_factory.mktemp("images") / "folder", 32, 0)
    for number, path in enumerate(sorted(images.iterdir())):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(path, compress_level=0)  # all files of one size
    return [
        *tiny,
        f"--data.source={images}",
        "--run.max-steps=12",
        "--run.checkpoint-every-steps=6",
        "--run.no-store",
        "--data.view-epochs=2",
    ]


@pytest.fixture
def seen(monkeypatch):
    """Return the number of views that the teacher sees in every forward pass of a training step."""
    counts: list[int] = []
    forward, step = Teacher.forward, distill.training_step

    def counted(self, images):
        if self.for_size((images.shape[2], images.shape[3])) is self:
            counts.append(len(images))
        return forward(self, images)

    def training_step(*args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Teacher, "forward", counted)
            return step(*args, **kwargs)

    monkeypatch.setattr(distill, "training_step", training_step)
    return counts


@pytest.fixture(scope="module")
def uncached(short, tmp_path_factory):
    return trace(run(short, tmp_path_factory.mktemp("uncached") / "run"))


@pytest.fixture(scope="module")
def first(short, tmp_path_factory):
    """The folder of a cache that a run filled, and the run's trace."""
    folder = tmp_path_factory.mktemp("first")
    return folder / "cache", cached(short, folder / "cache", folder / "run")


@pytest.fixture
def filled(first, tmp_path):
    """Copy the filled cache to ``tmp_path / "cache"``; return the losses of the run that did."""
    shutil.copytree(first[0], tmp_path / "cache")
    return losses(first[1])


def cached(short, place, folder, *more) -> list[dict]:
    return trace(run(short, folder, f"--teacher.cache={place}", *more))


def losses(lines) -> list[float]:
    return [line["loss"] for line in lines]


def test_a_cached_run_has_the_losses_of_an_uncached_one(short, uncached, tmp_path, seen):
    found = cached(short, tmp_path / "cache", tmp_path / "run")
    assert losses(found) == pytest.approx(losses(uncached), rel=TOLERANCE)
    assert losses(found) != losses(uncached), "the values are those of the records"
    assert seen == [16] * 2 * PER_EPOCH, "the teacher sees the views of two epochs"
    del seen[:]
    again = cached(short, tmp_path / "cache", tmp_path / "again")
    assert seen == []
    assert again == found


@pytest.mark.usefixtures("filled")
def test_another_seed_and_student_use_the_same_cache(short, tmp_path, seen):
    more = ["--run.seed=3", "--method.head=linear", "--method.temperature=0.1"]
    cached(short, tmp_path / "cache", tmp_path / "other", *more)
    assert seen == []


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "changed",
    [
        ["--teacher.mean", "0.4", "0.4", "0.4", "--teacher.std", "0.2", "0.2", "0.2"],
        ["--teacher.image-size=48"],
        ["--data.min-crop-area=0.3"],
        ["--data.view-epochs=1"],
        ["--data.blur", "False"],
        ["--data.image-size=64"],
    ],
    ids=lambda words: words[0].lstrip("-"),
)
def test_a_cache_of_other_settings_is_not_read(short, tmp_path, seen, changed):
    cached([*short, "--run.max-steps=4"], tmp_path / "cache", tmp_path / "other", *changed)
    assert seen == [16] * PER_EPOCH
    assert len(list_caches(tmp_path / "cache")) == 2


@pytest.mark.usefixtures("filled")
def test_a_cache_of_another_teacher_or_other_images_is_not_read(short, tmp_path, seen):
    import timm
    from torch import nn

    from pcd_hub.models.teacher_folder import save_teacher

    short = [*short, "--run.max-steps=4"]
    torch.manual_seed(8)
    backbone = timm.create_model("test_resnet", num_classes=0)
    head = nn.Sequential(nn.Linear(96, 16))
    facts = {"architecture": "test_resnet", "license": "mit"}
    save_teacher(tmp_path / "teacher", backbone.state_dict(), head, facts)
    other_teacher = f"--teacher.source=local-dir:{tmp_path / 'teacher'}"
    cached(short, tmp_path / "cache", tmp_path / "other", other_teacher)
    assert seen == [16] * PER_EPOCH
    fewer = image_folder(tmp_path / "fewer", 33, 0)
    cached(short, tmp_path / "cache", tmp_path / "third", f"--data.source={fewer}")
    assert seen == [16] * 2 * PER_EPOCH
    assert len(list_caches(tmp_path / "cache")) == 3


def test_an_image_that_was_replaced_is_noticed(short, tmp_path, seen, caplog):
    """Its name and size are the same, by which images are known before they are read."""
    images = tmp_path / "images"
    source = next(word for word in reversed(short) if word.startswith("--data.source="))
    shutil.copytree(source.removeprefix("--data.source="), images)
    short = [*short, f"--data.source={images}", "--data.view-epochs=1", "--run.max-steps=4"]
    cached(short, tmp_path / "cache", tmp_path / "run")
    files = sorted(images.iterdir())
    one, other = files[3].read_bytes(), files[4].read_bytes()
    files[3].write_bytes(other)
    files[4].write_bytes(one)
    del seen[:]
    cached(short, tmp_path / "cache", tmp_path / "again")
    assert sum(seen) == 4
    assert "0003.png are of another view (have the images changed?)" in caplog.text


def test_a_damaged_record_is_made_again_and_named(short, filled, tmp_path, seen, caplog):
    (cache,) = list_caches(tmp_path / "cache")
    file = cache.path / RECORDS
    content = bytearray(file.read_bytes())
    length = len(content) // 64
    content[5 * 2 * length + length // 2] ^= 0x10  # of image 5
    file.write_bytes(content)
    again = cached(short, tmp_path / "cache", tmp_path / "again")
    assert losses(again) == pytest.approx(filled, rel=1e-5), "up to rounding"
    assert seen == [2], "both views of one image"
    assert "the teacher's cache: the records of 0005.png are damaged" in caplog.text
    del seen[:]
    cached(short, tmp_path / "cache", tmp_path / "third")
    assert seen == []


@pytest.mark.parametrize("place", [0, 100])
def test_a_record_without_a_checksum_is_missing(short, filled, tmp_path, seen, caplog, place):
    """A process that is killed leaves it, written in part or completely."""
    (cache,) = list_caches(tmp_path / "cache")
    checksums = np.fromfile(cache.path / CHECKSUMS, "<u4")
    checksums[7] = 0
    checksums.tofile(cache.path / CHECKSUMS)
    with (cache.path / RECORDS).open("r+b") as file:
        file.seek(7 * len(file.read()) // 64 + place)
        file.write(b"\xff" * 20)
    again = cached(short, tmp_path / "cache", tmp_path / "again")
    assert losses(again) == pytest.approx(filled, rel=1e-5), "up to rounding"
    assert seen == [2]
    assert "damaged" not in caplog.text


def test_a_run_that_was_killed_resumes_with_equal_results(short, tmp_path, seen, monkeypatch):
    whole = tmp_path / "whole"
    lines = cached(short, tmp_path / "cache", whole)
    step, count = distill.training_step, 0

    def killed(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    folder, place = tmp_path / "run", tmp_path / "second"
    monkeypatch.setattr(distill, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(short, folder, f"--teacher.cache={place}")
    monkeypatch.setattr(distill, "training_step", step)
    del seen[:]
    run(short, folder, f"--teacher.cache={place}", "--run.resume")
    assert seen == [16], "one step of the second epoch was missing"
    assert trace(folder) == lines
    name = "checkpoints/step_00000012.pt"
    one, other = (torch.load(path / name, weights_only=True) for path in (whole, folder))
    assert_same(one["distiller"], other["distiller"])


def test_a_resumed_run_may_use_another_cache_or_none_but_not_other_views(short, tmp_path):
    folder = tmp_path / "run"
    cached([*short, "--run.max-steps=6"], tmp_path / "cache", folder)
    longer = [*short, "--run.resume", "--run.max-steps=8"]
    with pytest.raises(CheckpointError, match=r"another --data.view-epochs \(2, now 1\)"):
        run([*longer, "--data.view-epochs=1"], folder, f"--teacher.cache={tmp_path / 'cache'}")
    without = [word for word in longer if "view-epochs" not in word]
    assert len(trace(run(without, folder))) == 8
    moved = ["--run.max-steps=9", f"--teacher.cache={tmp_path / 'moved'}"]
    assert len(trace(run([*without, *moved], folder))) == 9


def test_a_run_without_repeating_views_is_not_resumed_with_a_cache(short, tmp_path):
    short = [word for word in short if "view-epochs" not in word]
    folder = run([*short, "--run.max-steps=1"], tmp_path / "run")
    longer = [*short, "--run.max-steps=2", "--run.resume"]
    with pytest.raises(ConfigError, match="resumed has new views in every epoch, expected views"):
        run(longer, folder, f"--teacher.cache={tmp_path / 'cache'}")
    run(longer, folder, "--teacher.cache=auto")


def test_a_full_disk_does_not_end_the_run(short, uncached, tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pcd_hub.train.teacher.cache.store.RecordStore.write", full)
    found = cached(short, tmp_path / "cache", tmp_path / "run")
    assert losses(found) == pytest.approx(losses(uncached), rel=TOLERANCE)
    assert caplog.text.count("can no longer be written (No space left on device)") == 1


def test_two_runs_at_once_fill_one_cache(short, tmp_path, seen):
    """Each in a process of its own; then a third finds every record."""
    place = f"--teacher.cache={tmp_path / 'cache'}"
    code = "import sys; from pcd_hub.train import distill; distill.main(sys.argv[1:])"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, *short, place, f"--run.output-dir={tmp_path / name}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "other")
    ]
    ends = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], ends
    assert not any("damaged" in text for text in ends)
    assert trace(tmp_path / "one") == trace(tmp_path / "other")
    cached(short, tmp_path / "cache", tmp_path / "third")
    assert seen == []


@pytest.mark.parametrize(
    "options",
    [
        ["--optim.accumulation-steps=2"],
        ["--method.views=cross"],
        ["--method.targets=pooled"],
        ["--method.loss=cosine_smooth_l1", "--method.head=linear"],
        ["--data.num-workers=1"],
    ],
    ids=lambda words: words[0].lstrip("-"),
)
def test_every_kind_of_step_uses_the_cache(short, tmp_path, seen, options):
    short = [*short, "--data.view-epochs=1", "--run.max-steps=8", *options]
    plain = trace(run(short, tmp_path / "plain"))
    del seen[:]
    found = cached(short, tmp_path / "cache", tmp_path / "run")
    assert losses(found) == pytest.approx(losses(plain), rel=TOLERANCE)
    assert sum(seen) == 64


def test_smaller_views_of_the_first_steps_have_a_cache_of_their_own(short, tmp_path, seen):
    early = ["--data.image-size=64", "--data.early-image-size=32", "--data.early-share=0.5"]
    short = [*short, *early, "--data.view-epochs=1", "--run.max-steps=16"]
    plain = trace(run(short, tmp_path / "plain"))
    del seen[:]
    found = cached(short, tmp_path / "cache", tmp_path / "run")
    assert losses(found) == pytest.approx(losses(plain), rel=TOLERANCE)
    assert seen == [16] * 2 * PER_EPOCH, "in one epoch of each size"
    assert [cache.complete for cache in list_caches(tmp_path / "cache")] == [1, 1]


def test_students_of_one_run_share_a_cache(short, tmp_path, seen):
    two = ["--student.arch=test_resnet,test_byobnet", "--run.max-steps=4"]
    cached_folder = run([*short, *two], tmp_path / "run", f"--teacher.cache={tmp_path / 'cache'}")
    assert seen == [16] * PER_EPOCH
    (cache,) = list_caches(tmp_path / "cache")
    assert cache.complete == 0.5
    assert len(trace(cached_folder / "test_byobnet")) == 4


def _one_process(_: int, port: int, arguments: list[str]) -> None:
    os.environ["MASTER_PORT"] = str(port)
    distill.main(arguments)


def test_each_process_writes_the_records_of_its_images(short, tmp_path, seen):
    short = [*short, f"--teacher.cache={tmp_path / 'cache'}", "--run.max-steps=8"]
    arguments = [*short, f"--run.output-dir={tmp_path / 'two'}"]
    start_processes(_one_process, (free_ports(1)[0], arguments))
    (cache,) = list_caches(tmp_path / "cache")
    assert cache.complete == 1
    run(short, tmp_path / "one")
    assert seen == []


def test_a_stream_has_no_cache(short, tmp_path, caplog):
    import datasets

    caplog.set_level("INFO", logger="pcd_hub")

    images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(16)]
    table = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "train.parquet")
    short = [*short, f"--data.source=hf-stream:{tmp_path}", "--run.max-steps=2"]
    with pytest.raises(ConfigError, match="is a stream, expected images with an order"):
        cached(short, tmp_path / "cache", tmp_path / "run")
    cached(short, "auto", tmp_path / "run")
    assert "--teacher.cache  off  a stream has no image twice" in caplog.text


def test_a_cache_without_room_is_refused_before_the_run(short, tmp_path):
    with pytest.raises(ConfigError, match=r"it needs 0 MB, --teacher.cache-gb is 1e-06"):
        cached(short, tmp_path / "cache", tmp_path / "run", "--teacher.cache-gb=1e-6")
    assert not (tmp_path / "run").exists()


def test_the_size_and_the_speed_of_the_disk_are_said_before_the_run(
    short, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="pcd_hub")
    monkeypatch.setattr(caching, "write_speed", lambda _: 100.0)
    cached(short, tmp_path / "cache", tmp_path / "run", "--run.max-steps=1")
    (line,) = (line for line in caplog.messages if "its disk takes" in line)
    (seconds,) = re.findall(r"takes 0 MB/s, so (\d+) s for what is missing", line)
    assert f"the teacher's cache in {tmp_path / 'cache'}: " in line
    num_bytes = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.bin"))
    assert int(seconds) == pytest.approx(num_bytes / 100, rel=0.05)


def test_a_complete_cache_is_found_whether_its_views_are_named_or_not(
    short, tmp_path, monkeypatch, caplog
):
    without = [word for word in short if "view-epochs" not in word]
    cached(without, tmp_path / "cache", tmp_path / "run")
    caplog.set_level("INFO", logger="pcd_hub")
    monkeypatch.setattr(caching, "write_speed", lambda _: pytest.fail("nothing is missing"))
    cached(without, tmp_path / "cache", tmp_path / "again")
    assert "its disk takes" not in caplog.text
    assert "has 32 of 32 records" in caplog.text


def test_a_folder_that_cannot_be_written_is_refused(short, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to .* \(Not a directory\)"):
        cached(short, tmp_path / "file", tmp_path / "run")


def test_auto_is_off_where_it_does_not_pay_and_says_so(short, tmp_path, caplog):
    caplog.set_level("INFO", logger="pcd_hub")
    folder = run(short, tmp_path / "run", "--teacher.cache=auto", "--run.max-steps=4")
    config = json.loads((folder / "config.json").read_text())
    assert config["teacher"]["cache"] == "off"
    assert "passes over the images are too few" in caplog.text


def test_auto_measures_runs_of_fewer_steps_than_the_measurement(short, tmp_path, monkeypatch):
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "home"))
    measured = []
    measure = distill.seconds_per_step
    monkeypatch.setattr(distill, "seconds_per_step", lambda *a: measured.append(measure(*a)) or 1.0)
    without = [word for word in short if "view-epochs" not in word]
    folder = run(without, tmp_path / "run", "--teacher.cache=auto", "--run.max-steps=16")
    assert len(trace(folder)) == 16
    assert measured


def test_auto_caches_where_it_pays(short, tmp_path, monkeypatch, seen):
    times = iter([1.0, 0.5])
    monkeypatch.setattr(distill, "seconds_per_step", lambda *_: next(times))
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "home"))
    without = [word for word in short if "view-epochs" not in word]
    folder = run(without, tmp_path / "run", "--teacher.cache=auto", "--run.max-steps=32")
    config = json.loads((folder / "config.json").read_text())
    assert (config["teacher"]["cache"], config["data"]["view_epochs"]) == ("auto", 2)
    (cache,) = list_caches(tmp_path / "home" / "teacher_cache")
    assert cache.complete == 1
    assert len(seen) == 2 * PER_EPOCH
    longer = ["--teacher.cache=auto", "--run.max-steps=33", "--run.resume"]
    assert len(trace(run(without, folder, *longer))) == 33
    assert len(seen) == 2 * PER_EPOCH


@pytest.mark.usefixtures("filled")
def test_a_teacher_with_the_same_weights_but_another_output_is_refused(
    short, tmp_path, monkeypatch
):
    forward = Teacher.forward
    monkeypatch.setattr(Teacher, "forward", lambda self, images: forward(self, images).roll(1, 1))
    with pytest.raises(ConfigError, match="the same weights but another output; remove it"):
        cached(short, tmp_path / "cache", tmp_path / "other")
