"""Command line of k-NN, linear classification and the label-free report (``recipes/knn.py``)."""

import dataclasses
import shlex
from typing import Any

from pcd_hub.data.labelled.classification import ClassificationSet
from pcd_hub.data.sources.open import ImageSource, open_source
from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.benchmark import Benchmark
from pcd_hub.evaluate.classification import ClassificationProbe
from pcd_hub.evaluate.label_free import LabelFreeReport
from pcd_hub.evaluate.models import check_models
from pcd_hub.train.configs.command_line import parse, run_main
from pcd_hub.train.configs.probes import KNN, KnnConfig
from pcd_hub.train.frozen.selection import append_scores, select_models
from pcd_hub.train.labelled_splits import open_classification_splits, survey_class_splits
from pcd_hub.train.labels.check import log_warnings
from pcd_hub.train.launch import quiet_logs
from pcd_hub.train.run_folder.folder import output_folder
from pcd_hub.train.run_folder.provenance import provenance
from pcd_hub.weights.local_paths import shortened


def main(arguments: list[str]) -> list[dict[str, Any]]:
    """Score every model with and without labels, save and print the tables; return them."""
    _, config = parse(KNN, "folder", arguments)
    quiet_logs()
    benchmarks = build_benchmarks(config)
    check_models(config.models, config.run.seeds)
    for benchmark in benchmarks.values():
        if isinstance(benchmark, ClassificationProbe):
            log_warnings(survey_class_splits(benchmark.train, benchmark.test))
    command = shlex.join(["python", "-m", "pcd_hub.train.frozen.knn", *arguments])
    empty = [
        benchmark.empty_table(config.run.seeds, command=command, details=provenance())
        for benchmark in benchmarks.values()
    ]
    selected = select_models(config, empty)
    with output_folder(config.run.output_dir, "knn") as folder:
        tables = []
        for (name, benchmark), (table, models) in zip(benchmarks.items(), selected, strict=True):
            for model in models:
                scores = benchmark.score(model, config.run.seeds)
                table = table.with_scores(scores)  # noqa: PLW2901 - it grows
                table.save(folder / name)
                append_scores(config.append, table, scores)
            print(f"\n{table.table()}\n\n{folder / name}")
            tables.append({**dataclasses.asdict(table), "folder": str(folder / name)})
        return tables


def build_benchmarks(config: KnnConfig) -> dict[str, Benchmark]:
    """Open the images and set up the evaluations, by the name of their folder.

    Raises:
        ConfigError: If no images are named.
    """
    if not config.data.source and not config.report.source:
        raise ConfigError(
            "no images: expected --data.source DIR with SPLIT/CLASS/, or --report.source for "
            "images without labels"
        )
    benchmarks: dict[str, Benchmark] = {}
    labelled = open_classification_splits(config.data) if config.data.source else None
    if labelled:
        benchmarks["image_classification"] = ClassificationProbe(
            *labelled,
            image_size=config.data.image_size,
            k=config.k,
            temperature=config.temperature,
            penalty=config.penalty,
            num_workers=config.data.num_workers,
        )
    dataset, images = _unlabelled_images(config, labelled)
    benchmarks["label_free_report"] = LabelFreeReport(
        images,
        dataset=dataset,
        teacher=config.teacher.source,
        num_images=config.report.num_images,
        k=config.report.retrieval_k,
        image_size=config.data.image_size,
        num_workers=config.data.num_workers,
    )
    return benchmarks


def _unlabelled_images(
    config: KnnConfig, labelled: tuple[ClassificationSet, ClassificationSet] | None
) -> tuple[str, ImageSource | ClassificationSet]:
    """Return name and images of the label-free report; by default the labelled test images."""
    if labelled and not config.report.source:
        return labelled[1].name, labelled[1]
    source = open_source(config.report.source)
    if not isinstance(source, ImageSource):
        raise ConfigError(
            f"--report.source {config.report.source} is a stream: expected a finite set of images"
        )
    return shortened(config.report.source), source


if __name__ == "__main__":
    run_main(main)
