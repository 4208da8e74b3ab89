"""The computed costs: closed forms, and the page that shows them."""

import dataclasses
import math
from pathlib import Path

import pytest

import cost_model
import costs
from cost_model import Cluster, count_work, time_step

PAGE = Path(__file__).parents[2] / "recipes" / "large_scale.md"
WORK = cost_model.Work(
    teacher_flop=4e9,
    teacher_is_transformer=False,
    student_flop=2e9,
    loss_flop=1e9,
    teacher_kernels=100,
    student_kernels=300,
    parameters=10_000_000,
    batch_norms=20,
    channels=256,
    locations=49,
)
CLUSTER = Cluster(
    flop_per_s=1e15,
    utilisation=0.5,
    transformer_utilisation=0.25,
    launch_seconds=1e-6,
    loader_images_per_s=1000,
    bandwidth=100e9,
    bandwidth_between=10e9,
    latency=1e-5,
    latency_between=1e-4,
    price=2,
)


def test_the_page_is_current():
    page = PAGE.read_text()
    assert costs.fill_page(page, Cluster()) == page, "run python scripts/costs.py --page FILE"
    assert "Computed, not measured" in page


def test_the_work_equals_published_counts():
    """A forward pass at 224 px: ResNet-18 1.82 GMAC, ResNet-50 4.11, DINOv3 ViT-L 62.8."""
    resnet, vit = count_work("resnet50"), count_work("vit_large_patch16_dinov3", head="linear")
    teacher_head = 2048 * 4096 + 3 * 4096 * 256
    assert resnet.teacher_flop / 4 == pytest.approx(4.089e9 + 49 * teacher_head, rel=0.01)
    assert vit.teacher_flop / 4 == pytest.approx(62.8e9, rel=0.01)
    linear = 512 * 1024
    assert vit.student_flop / 4 == pytest.approx(3 * (1.814e9 + 49 * linear), rel=0.03)
    assert (resnet.channels, resnet.locations) == (256, 49)
    assert (vit.channels, vit.teacher_is_transformer) == (1024, True)
    assert resnet.loss_flop == 4 * 2 * 49 * 65_536 * 256
    assert vit.batch_norms == 20  # of a ResNet-18
    assert resnet.batch_norms == 22
    assert 11.18e6 < vit.parameters < 12e6


def test_one_gpu_computes_and_sends_nothing():
    step = time_step(WORK, CLUSTER, num_gpus=1, global_batch=1000)
    assert step.compute == pytest.approx(1000 * 7e9 / 0.5e15)
    assert step.training == step.compute
    assert (step.loader, step.seconds, step.limit) == (1.0, 1.0, "loader")
    cached = time_step(WORK, CLUSTER, num_gpus=1, global_batch=1000, cached=True)
    assert cached.compute == pytest.approx(1000 * 3e9 / 0.5e15)


def test_a_transformer_has_a_rate_of_its_own():
    vit = dataclasses.replace(WORK, teacher_is_transformer=True)
    step = time_step(vit, CLUSTER, num_gpus=1, global_batch=1000)
    assert step.compute == pytest.approx(1000 * (4e9 / 0.25e15 + 3e9 / 0.5e15))


@pytest.mark.parametrize(("num_gpus", "bandwidth", "latency"), [(8, 100e9, 1e-5), (16, 10e9, 1e-4)])
def test_several_gpus_wait_for_collectives(num_gpus, bandwidth, latency):
    step = time_step(WORK, CLUSTER, num_gpus=num_gpus, global_batch=16)
    others = (num_gpus - 1) / num_gpus
    assert step.batch_norm == pytest.approx(2 * 20 * latency)
    assert step.queue == pytest.approx(latency + others * 4 * 16 * 256 / bandwidth)
    student = 300e-6  # its kernels take longer to launch than to run
    assert step.compute == pytest.approx(student + 100e-6 + 16 / num_gpus * 1e9 / 0.5e15)
    ring = 2 * others * 4 * 10_000_000 / bandwidth
    assert step.gradients == pytest.approx(ring - student / 2)
    assert step.limit in {"loader", "gradients"}


def test_a_cache_is_filled_in_the_first_epochs():
    hours = [
        cost_model.run_hours(WORK, CLUSTER, epochs, num_gpus=1, cached=cached, loads=False)
        for epochs, cached in ((4, True), (4, False), (104, True))
    ]
    assert hours[0] == hours[1]
    images = 1_281_167 * 100
    assert hours[2] - hours[0] == pytest.approx(images * 3e9 / 0.5e15 / 3600)


def test_price_and_rates_of_a_row_agree():
    rows = [line.split(" | ") for line in costs.runs_table(Cluster()).splitlines()[2:]]
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        gpus, rate, length, price = int(row[2]), row[4], *row[5].split(" h, $")
        hours = 1_281_167 * 100 / float(rate.replace(",", "")) / 3600
        if row[1] == "computed":
            assert float(length.replace(",", "")) == pytest.approx(hours, rel=0.1, abs=0.06)
            assert float(price.replace(",", "")) == pytest.approx(hours * gpus * 2.5, rel=0.02)


def test_what_the_page_says_of_scaling_is_what_is_computed():
    work = count_work("resnet50")

    def efficiency(gpus: int, batch: int) -> float:
        one, many = (
            time_step(work, Cluster(), num_gpus=n, global_batch=batch).training for n in (1, gpus)
        )
        return one / gpus / many

    assert math.isclose(efficiency(64, 4096), efficiency(16, 1024), rel_tol=0.03)
    assert efficiency(8, 1024) > 0.9
    assert efficiency(64, 1024) < 0.5
    limits = {n: time_step(work, Cluster(), num_gpus=n) for n in (1, 8, 16, 64)}
    assert limits[16].gradients > 0
    assert limits[8].gradients == 0
    assert all(step.queue < 0.05 * step.training for step in limits.values())


def test_every_assumption_is_an_option(capsys):
    changed = {name: 2 * value for name, value in dataclasses.asdict(Cluster()).items()}
    costs.main([f"--{name.replace('_', '-')}={value}" for name, value in changed.items()])
    printed = capsys.readouterr().out
    for text in costs.tables(Cluster(**changed)).values():
        assert text in printed
    assert costs.runs_table(Cluster()) not in printed
