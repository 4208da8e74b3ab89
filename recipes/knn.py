"""What a frozen backbone knows of whole images, and what it took over from a teacher.

    python recipes/knn.py --data.source DIR --models random:resnet18 resnet18.pcd
    python recipes/knn.py --report.source IMAGES --models random:resnet18 resnet18.pcd

DIR holds ``SPLIT/CLASS/``. With labels: weighted k-NN and a linear classifier on pooled vectors.
Without, on any images: how often the model finds the pixel that the teacher finds nearest, how like
the teacher's its pixels are (CKA), and how many directions they use. Results: recipes/README.md.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pcd_hub.data.labelled.classification import ClassifiedSet
from pcd_hub.data.sources import ImageSource, open_source
from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.classification import linear_classifier
from pcd_hub.evaluate.feature_maps import (
    Pixels,
    all_maps,
    compute_device,
    pixels_of,
    reading_processes,
)
from pcd_hub.evaluate.models import EvaluatedModel, check_models, for_each_seed
from pcd_hub.evaluate.progress import progress, progress_of
from pcd_hub.evaluate.results import Evaluation
from pcd_hub.method.metrics import Watch, effective_rank, knn_vote, linear_cka, pixel_retrieval
from pcd_hub.models.grid import Resample
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.train.configs.command_line import parse, run
from pcd_hub.train.configs.probes import KNN, KnnConfig
from pcd_hub.train.labelled_splits import open_labelled
from pcd_hub.train.launch import quiet_logs
from pcd_hub.train.run_folder.folder import new_folder, surroundings


def main(arguments: list[str]) -> None:
    """Parse, describe the images by every model, write and print the tables."""
    _, config = parse(KNN, "folder", arguments)
    quiet_logs()
    _check(config)
    command = shlex.join(["python", "recipes/knn.py", *arguments])
    labelled = open_labelled(config.data) if config.data.source else None
    name, shown = _open_shown(config, labelled)
    folder = new_folder(config.run.output_dir, "knn")
    if labelled:
        by_label = folder / "image_classification"
        print(f"\n{_with_labels(config, *labelled, command, by_label).table()}\n\n{by_label}")
    free = folder / "label_free_report"
    print(f"\n{_without_labels(config, shown, name, command, free).table()}\n\n{free}")


def _check(config: KnnConfig) -> None:
    if not config.data.source and not config.report.source:
        raise ConfigError(
            "name the images: --data.source DIR with SPLIT/CLASS/, or --report.source for images "
            "without labels"
        )
    check_models(config.models, config.seeds)


def _open_shown(
    config: KnnConfig, labelled: tuple[ClassifiedSet, ClassifiedSet] | None
) -> tuple[str, ImageSource]:
    """The images of the label-free report, and what they are called."""
    if labelled and not config.report.source:
        return labelled[1].name, labelled[1]
    source = open_source(config.report.source)
    if not isinstance(source, ImageSource):
        raise ConfigError(f"--report.source {config.report.source} is a stream; name a finite set")
    return config.report.source, source


# With labels.


def _with_labels(
    config: KnnConfig, train: ClassifiedSet, test: ClassifiedSet, command: str, folder: Path
) -> Evaluation:
    evaluation = Evaluation(
        task="image classification",
        dataset=test.name,
        protocol=f"frozen backbone, {_crops(config)}, mean of the last map (of a ViT's patches, "
        f"not its class token); {config.k} nearest of {train.name} ({len(train)} images) by "
        f"cosine, weights exp(cos / {config.temperature:g}); logistic regression on standardised "
        f"vectors, penalty {config.penalty:g}, L-BFGS, without augmentation",
        command=command,
        images=len(test),
        seeds=config.seeds,
        units={"k-NN top-1": "%", "linear top-1": "%"},
        scores={},
        details=surroundings(),
    )
    return _measured(
        evaluation, config, folder, lambda under_test: _classify(config, under_test, train, test)
    )


def _crops(config: KnnConfig) -> str:
    size = config.data.image_size
    return f"centre crops (7/8 of the shorter side, at {size} x {size}, bicubic)"


def _measured(
    evaluation: Evaluation,
    config: KnnConfig,
    folder: Path,
    score: Callable[[EvaluatedModel], tuple[float, ...]],
) -> Evaluation:
    """The table with a row for each model, saved after every one.

    ``score`` gives a model's metrics in order.
    """
    folder.mkdir()
    for name in config.models:
        seen = list(for_each_seed(name, config.seeds, score, image_size=config.data.image_size))
        by_metric = zip(*(scores for _, _, scores in seen), strict=True)
        evaluation = evaluation.with_model(
            name,
            dict(zip(evaluation.units, by_metric, strict=True)),
            weights_sha256=seen[0][1].weights_sha256,
            details={},
        )
        evaluation.save(folder)
    return evaluation


def _classify(
    config: KnnConfig, under_test: EvaluatedModel, train: ClassifiedSet, test: ClassifiedSet
) -> tuple[float, ...]:
    """Top-1 in % by neighbours and by a linear classifier."""
    pixels = pixels_of(under_test, config.data.image_size)
    train_vectors, test_vectors = (
        _pooled(config, pixels, images, f"{under_test.name}: {images.name}")
        for images in (train, test)
    )
    known, truth = (torch.tensor(images.labels) for images in (train, test))
    count = len(train.classes)
    by_neighbours = knn_vote(
        train_vectors,
        known,
        test_vectors,
        num_classes=count,
        k=config.k,
        temperature=config.temperature,
        watch=_watch(f"{under_test.name}: neighbours"),
    )
    by_line = linear_classifier(
        train_vectors,
        known,
        test_vectors,
        num_classes=count,
        penalty=config.penalty,
        progress=progress_of(under_test.name),
    )
    return tuple(
        100 * float((guessed == truth).float().mean()) for guessed in (by_neighbours, by_line)
    )


def _pooled(config: KnnConfig, pixels: Pixels, images: ClassifiedSet, what: str) -> Tensor:
    """One mean vector an image."""
    workers = reading_processes(config.data.num_workers)
    size, rows = config.data.image_size, range(len(images))
    batches = all_maps(pixels, images, rows, size=size, num_workers=workers, what=what)
    return torch.cat([maps.mean((2, 3)) for maps in batches])


def _watch(what: str) -> Watch:
    def watched(parts: Sequence[Tensor]) -> Iterator[Tensor]:
        return progress(parts, what, total=len(parts))

    return watched


# Without labels.


def _without_labels(
    config: KnnConfig, images: ImageSource, dataset: str, command: str, folder: Path
) -> Evaluation:
    size = config.data.image_size
    rows = _some_rows(len(images), config.report.images)
    teacher = load_teacher(config.report.teacher, image_size=size)

    def maps_of(pixels: Pixels, name: str) -> Tensor:
        workers = reading_processes(config.data.num_workers)
        what = f"{name}: {len(rows)} images"
        return torch.cat(
            list(all_maps(pixels, images, rows, size=size, num_workers=workers, what=what))
        )

    theirs = maps_of(teacher.to(compute_device()), "teacher")
    k = config.report.retrieval_k
    found = f"teacher's nearest pixel in top-{k}"
    evaluation = Evaluation(
        task="label-free report",
        dataset=dataset,
        protocol=f"frozen backbone, {_crops(config)}, pixels of the last map against "
        f"those of the teacher {config.report.teacher}, both on the coarser grid; nearest by "
        "cosine among the pixels of other images; linear CKA; effective rank: exp of the "
        "entropy of the pixels' singular values",
        command=command,
        images=len(rows),
        seeds=config.seeds,
        units={found: "%", "CKA with teacher": "%", "effective rank": ""},
        scores={},
        details=surroundings() | {"images": images.fingerprint()},
    )

    def score(under_test: EvaluatedModel) -> tuple[float, ...]:
        mine = maps_of(pixels_of(under_test, size), under_test.name)
        return _report(mine, theirs, k, watch=_watch(f"{under_test.name}: nearest pixels"))

    return _measured(evaluation, config, folder, score)


def _some_rows(length: int, count: int) -> list[int]:
    """``count`` of them, the same ones always."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    return sorted(order[:count].tolist())


def _report(mine: Tensor, theirs: Tensor, k: int, *, watch: Watch) -> tuple[float, ...]:
    """Retrieval and CKA in %, effective rank."""
    grid = min(mine.shape[2], theirs.shape[2]), min(mine.shape[3], theirs.shape[3])
    one, other = (
        Resample((maps.shape[2], maps.shape[3]), grid)(maps).flatten(2) for maps in (mine, theirs)
    )
    if k > (others := (len(one) - 1) * one.shape[2]):
        raise ConfigError(f"--report.retrieval-k {k}: the other images have {others} pixels")
    pixels = [maps.transpose(1, 2).flatten(0, 1) for maps in (one, other)]
    return (
        100 * pixel_retrieval(one, other, k=k, watch=watch),
        100 * linear_cka(*pixels),
        effective_rank(pixels[0]),
    )


if __name__ == "__main__":
    run(main)
