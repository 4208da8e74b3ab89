"""Sharing of images between processes, and their loaders; the recipes' own tests run them."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pcd_hub.data.labelled.coco import CocoImage
from pcd_hub.data.labelled.segmentation_set import SegmentationSet, class_table
from pcd_hub.data.loader import BatchPlan
from pcd_hub.train.batches import num_workers, shard
from pcd_hub.train.configs.detection import CocoDataConfig
from pcd_hub.train.configs.distill import DataConfig
from pcd_hub.train.configs.segmentation import FinetuneDataConfig
from pcd_hub.train.detection import batches as detection_batches
from pcd_hub.train.segmentation import batches as segmentation_batches


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_together_the_processes_have_each_picture_once(num_processes):
    parts = [shard(7, rank, num_processes) for rank in range(num_processes)]
    assert sorted(index for part in parts for index in part) == list(range(7))


def test_loaders_of_both_keep_within_the_shared_memory(monkeypatch):
    """216 kB of it: of pictures 160 x 100 there fit 4, 3 of them in use; of crops 64 x 64 13."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=240_000))
    started = []
    monkeypatch.setattr(
        "pcd_hub.data.reading.load_batches",
        lambda _, workers, **__: started.append(workers) or iter(()),
    )
    plan = BatchPlan(global_batch_size=1, total_steps=1)
    small, large = (
        CocoImage(image_id=side, path=Path("x"), width=side, height=100, objects=())
        for side in (100, 160)
    )
    assert detection_batches.largest_batch([small, large, small], 2, masks=True) == 300 * 260
    labels = detection_batches.Labels({1: "cell"})
    list(
        detection_batches.detection_batches(
            [small, large], labels, plan, masks=False, num_workers=2
        )
    )
    crop = segmentation_batches.RandomCrop(
        FinetuneDataConfig(crop_size=(64, 64)), mean=(0.5, 0.5, 0.5)
    )
    images = SegmentationSet(
        [None] * 3, name="x", classes=["a", "b"], table=class_table(2, ignore=None)
    )
    list(segmentation_batches.crop_batches(images, crop, plan, num_workers=8))
    assert started == [(1, 1), (8, 1)]


@pytest.mark.parametrize("config", [DataConfig, CocoDataConfig, FinetuneDataConfig])
def test_the_default_number_of_workers_is_the_documented_one(config, monkeypatch):
    monkeypatch.setattr("pcd_hub.data.workers.num_cores", lambda: 1000)
    on_cpu, most = re.findall(
        r"None: (\d+) on a CPU, up to (\d+) with a GPU", inspect.getsource(config)
    )[0]
    for device, expected in (("cpu", on_cpu), ("cuda", most)):
        assert num_workers(None, torch.device(device)) == int(expected)
    assert num_workers(3, torch.device("cpu")) == 3
