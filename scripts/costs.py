"""Compute time, price, disk and network of large runs; nothing here is measured.

    python scripts/costs.py                                    # print the tables
    python scripts/costs.py --page recipes/large_scale.md      # write them into the page

The model and its assumptions are in cost_model.py; every assumption is an option.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

from cost_model import (
    IMAGE_BYTES,
    IMAGES,
    RESIDENT_BYTES,
    VIEW_EPOCHS,
    Cluster,
    count_work,
    run_hours,
    time_step,
)

GPUS = (1, 8, 64)
EPOCHS = (100, 800)
SMALL_IMAGES, SMALL_FLOP_PER_S, SMALL_CORES = 100_000, 121e12, 8
"""Images, rate and cores of one small GPU: an L4, by its data sheet, with half the cores."""
CASES = {
    "ResNet-50": ("resnet50", "mocov3"),
    "DINOv3 ViT-L": ("vit_large_patch16_dinov3", "linear"),
}


def runs_table(cluster: Cluster) -> str:
    """Return hours and price of every run: with the loader, and without a limit of the data."""
    header = ["teacher", "targets", "GPUs", "limit", "images/s"]
    header += [f"{epochs} epochs" for epochs in EPOCHS]
    header += ["without the loader's limit: images/s", "cores a GPU for it"]
    header += [f"{epochs} epochs" for epochs in EPOCHS]
    rows = []
    for name, (teacher, head) in CASES.items():
        work = count_work(teacher, head=head)
        for cached, num_gpus in itertools.product((False, True), GPUS):
            step = time_step(work, cluster, num_gpus=num_gpus, cached=cached)

            def lengths(*, loads: bool) -> list[str]:
                took = [
                    run_hours(work, cluster, epochs, num_gpus=num_gpus, cached=cached, loads=loads)  # noqa: B023
                    for epochs in EPOCHS
                ]
                return [f"{_short(h)} h, ${h * num_gpus * cluster.price:,.0f}" for h in took]  # noqa: B023

            possible = step.images / step.training
            cores = 16 * possible / num_gpus / cluster.loader_images_per_s
            cells = [name, "cached" if cached else "computed", f"{num_gpus}", step.limit]
            cells += [f"{step.images / step.seconds:,.0f}", *lengths(loads=True)]
            cells += [f"{possible:,.0f}", f"{cores:.0f}", *lengths(loads=False)]
            rows.append(cells)
    return _table(header, rows)


def small_table(cluster: Cluster) -> str:
    """Return what 100,000 images cost on one small GPU, with and without the teacher's cache."""
    loader = cluster.loader_images_per_s * SMALL_CORES / 16
    small = dataclasses.replace(cluster, flop_per_s=SMALL_FLOP_PER_S, loader_images_per_s=loader)
    rows = []
    for name, (teacher, head) in CASES.items():
        work = count_work(teacher, head=head)
        size = SMALL_IMAGES * VIEW_EPOCHS * work.record_bytes / 1e9
        for cached in (False, True):
            step = time_step(work, small, num_gpus=1, cached=cached)
            took = run_hours(
                work, small, EPOCHS[0], num_gpus=1, cached=cached, num_images=SMALL_IMAGES
            )
            cells = [name, "cached" if cached else "computed", step.limit]
            cells += [f"{step.images / step.seconds:,.0f}", f"{_short(took)} h"]
            rows.append([*cells, f"{size:.0f} GB" if cached else "none"])
    header = ["teacher", "targets", "limit", "images/s", f"{EPOCHS[0]} epochs", "cache"]
    return _table(header, rows)


def scaling_table(cluster: Cluster) -> str:
    """Return the parts of a step of 1024 images for more and more GPUs, ResNet-50 teacher."""
    work = count_work("resnet50")
    alone = time_step(work, cluster, num_gpus=1).training
    rows = []
    for num_gpus in (1, 2, 4, 8, 16, 32, 64, 128):
        step = time_step(work, cluster, num_gpus=num_gpus)
        parts = (step.compute, step.batch_norm, step.gradients, step.queue, step.loader)
        efficiency = f"{100 * alone / num_gpus / step.training:.0f} %"
        per_gpu = f"{step.images // num_gpus}"
        cells = [f"{num_gpus}", per_gpu, *(f"{1000 * part:.2f}" for part in parts), efficiency]
        rows.append(cells)
    header = ["GPUs", "images a GPU", "compute", "SyncBatchNorm", "gradients, exposed", "queue"]
    return _table([*header, "loader, at the same time", "efficiency"], rows)


def storage_table(cluster: Cluster) -> str:
    """Return what the runs read, keep and send."""
    rows = [["ImageNet-1k, JPEG files", f"{IMAGES * IMAGE_BYTES / 1e9:.0f} GB on disk"]]
    total = IMAGES * RESIDENT_BYTES
    rows.append(["the same, decoded, short side of 256 px", f"{total / 1e9:.0f} GB"])
    for name, (teacher, head) in CASES.items():
        record = count_work(teacher, head=head).record_bytes
        size = IMAGES * VIEW_EPOCHS * record / 1e9
        rows.append(
            [
                f"cached targets, {name}",
                f"{record / 1e3:.0f} KB for a pair of views, {size:,.0f} GB for {VIEW_EPOCHS}",
            ]
        )
    work = count_work("resnet50")
    read = (
        f"{IMAGE_BYTES * gpus * cluster.loader_images_per_s / 1e9:.2g} GB/s on {gpus}"
        for gpus in GPUS
    )
    rows.append(["files read, 16 cores a GPU", ", ".join(read)])
    rows.append(["gradients a step", f"{4 * work.parameters / 1e6:.0f} MB, float32"])
    rows.append(["keys of the queue a step", f"{4 * 1024 * work.channels / 1e6:.1f} MB, float32"])
    rows.append(["SyncBatchNorm a step", f"{2 * work.batch_norms} collectives"])
    return _table(["what", "size"], rows)


def work_table() -> str:
    """Return the FLOP of an image in two views of 224 px."""
    header = ["teacher", "teacher", "student, forward and backward", "loss", "in total"]
    rows = []
    for name, (teacher, head) in CASES.items():
        work = count_work(teacher, head=head)
        parts = (work.teacher_flop, work.student_flop, work.loss_flop)
        rows.append([name, *(f"{part / 1e9:.1f}" for part in (*parts, sum(parts)))])
    return _table(header, rows)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [header, ["---"] * len(list(header)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(cluster: Cluster) -> dict[str, str]:
    """Return the tables of the page by name."""
    return {
        "work": work_table(),
        "runs": runs_table(cluster),
        "small": small_table(cluster),
        "scaling": scaling_table(cluster),
        "storage": storage_table(cluster),
    }


def fill_page(page: str, cluster: Cluster) -> str:
    """Return the page with the text after each ``<!-- costs: NAME -->`` replaced by its table."""
    for name, text in tables(cluster).items():
        mark, end = f"<!-- costs: {name} -->", "<!-- end -->"
        before, _, rest = page.partition(mark)
        page = f"{before}{mark}\n\n{text}\n\n{end}{rest.partition(end)[2]}"
    return page


def main(arguments: list[str]) -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="Markdown page to write them into")
    for field in dataclasses.fields(Cluster):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default)
    values = vars(parser.parse_args(arguments))
    page = values.pop("page")
    cluster = Cluster(**values)
    if page is not None:
        page.write_text(fill_page(page.read_text(), cluster))
        return
    for name, text in tables(cluster).items():
        print(f"\n{name}\n\n{text}")


if __name__ == "__main__":
    main(sys.argv[1:])
