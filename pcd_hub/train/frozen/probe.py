"""``pcd-hub probe DATA [MODEL ...]``: the evaluation that fits the labels of the data.

Masks: a linear segmentation probe. Class folders: k-NN and a linear classifier. Published data sets
by name: published.py.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable
from typing import Any

from pcd_hub.data.labelled.formats.pairs import split_names
from pcd_hub.data.labelled.masks.files import has_masks
from pcd_hub.data.labelled.published.sets import SETS, sets_table
from pcd_hub.data.sources.uris import is_dir, local_path
from pcd_hub.errors import ConfigError, WeightError, nearest
from pcd_hub.train.configs.command_line import run_main
from pcd_hub.train.frozen import knn, segmentation_probe
from pcd_hub.train.frozen.published import default_place, named_sets, probe_sets
from pcd_hub.weights.catalogue import finished_export

_SEGMENTATION = ("ade20k", "voc", "cityscapes")
_USAGE = """\
usage: pcd-hub probe DATA [MODEL ...] [--group.field VALUE ...]

Evaluate frozen backbones on labelled images.

DATA: images/SPLIT, masks/SPLIT and classes.json; ade20k:DIR, voc:DIR or cityscapes:DIR;
      polygons and masks of annotation tools with --data.format (docs/labels.md)
      -> linear segmentation probe, mean IoU
      SPLIT/CLASS/ -> k-NN and linear classification
      hf:ORG/NAME, hf-disk:DIR -> the probe with --data.num-classes, k-NN otherwise
      oxford_pets, eurosat or dtd: a published set, downloaded once (docs/how-to/benchmark.md);
      benchmark: all three, and one table
MODEL: resnet18.pcd, the folder of a run, random:ARCH, teacher:SOURCE, local-dir:DIR,
      hf-hub:ORG/NAME, onnx:FILE of an export (masks), or any timm model name
      Default: random:resnet18 resnet18.pcd teacher:quickstart

--references: also evaluate resnet18.a1_in1k, resnet18.fb_ssl_yfcc100m_ft_in1k and
      convnext_tiny.dinov3_lvd1689m; those that cannot be downloaded are named and left out
--append NAME.jsonl: append every result to this file, which pcd-hub compare reads
--list-sets: print the published sets with their sizes and licences, and exit

Examples:
  pcd-hub probe facades random:resnet18 runs/own_images resnet18.a1_in1k
  pcd-hub probe flowers resnet18.pcd --data.image-size 128 --run.seeds 0
  pcd-hub probe eurosat random:resnet18 resnet18.pcd
  pcd-hub probe facades random:resnet18 resnet18.pcd --references --append results.jsonl

All options: pcd-hub probe DATA --help
--json prints a list of {task, dataset, protocol, protocol_version, images, seeds, units, scores,
folder}."""


_Tables = list[dict[str, Any]]


def main(arguments: list[str]) -> _Tables:
    """Choose the evaluation by the labels, print the choice, and run it; return its tables."""
    if not arguments:
        raise ConfigError("no labelled images: expected pcd-hub probe DATA (pcd-hub probe --help)")
    if arguments[0] in {"-h", "--help"}:
        print(_USAGE)
        sys.exit(0)
    if "--list-sets" in arguments:
        return list_sets()
    data, *rest = arguments
    if data.startswith("-"):
        raise ConfigError(f"{data}: expected the labelled images first: pcd-hub probe DATA")
    models = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
    named = ["--models", *map(model_name, models)] if models else []
    options = [*named, *rest[len(models) :]]
    if sets := named_sets(data):
        return probe_sets(sets, options, evaluate)
    return evaluate(data, options)


def evaluate(data: str, options: list[str]) -> _Tables:
    """Choose the evaluation by the labels, print the choice, and run it; return its tables.

    Args:
        data: The labelled images.
        options: Options of the evaluation, with ``--models``.
    """
    run, what = choose(data, options)
    print(f"{data}: {what}")
    return run([f"--data.source={data}", *named_test_split(data, options), *options])


def list_sets() -> _Tables:
    """Print the published data sets; return their facts."""
    print(f"{sets_table()}\n\nThey are kept in {default_place()}.")
    return [
        {
            field.name: getattr(one, field.name)
            for field in dataclasses.fields(one)
            if field.name not in {"archives", "write"}
        }
        | {"urls": [archive.url for archive in one.archives]}
        for one in SETS.values()
    ]


def choose(data: str, options: list[str]) -> tuple[Callable[[list[str]], _Tables], str]:
    """Return the evaluation that fits the labels, and its description.

    Args:
        data: The labelled images.
        options: Options of the evaluation, which tell what a Hugging Face data set holds.

    Raises:
        ConfigError: If there are neither masks nor class folders.
    """
    masks = segmentation_probe.main, "masks, so a linear segmentation probe"
    classes = knn.main, "classes, so k-NN and a linear classifier"
    scheme = data.partition(":")[0]
    if scheme in _SEGMENTATION:
        return masks
    if scheme in {"hf", "hf-disk"}:
        with_masks = {option.partition("=")[0].replace("_", "-") for option in options}
        return masks if with_masks & {"--data.num-classes", "--data.mask-column"} else classes
    folder = local_path(data)
    if not is_dir(folder):
        raise ConfigError(
            f"no folder {data}: expected labelled images (pcd-hub probe --help)"
            f"{nearest(data, SETS.keys() - {data})}"
        )
    given = {option.partition("=")[0] for option in options}
    if has_masks(folder, "train") or "--data.format" in given:
        return masks
    if any(is_dir(folder / split) for split in ("train", "test", *split_names("val"))):
        return classes
    raise ConfigError(
        f"{data} has no labels: expected images/SPLIT with masks/SPLIT and classes.json, "
        "SPLIT/CLASS/ with the splits train and val, or objects with --data.format coco, yolo, "
        "voc, labelme or cvat"
    )


def named_test_split(data: str, options: list[str]) -> list[str]:
    """Return the option for a test split with another name than val, if the folder has one."""
    given = any(option.replace("_", "-").startswith("--data.test-split") for option in options)
    folder = local_path(data)
    parent = folder / "masks" if is_dir(folder / "masks") else folder
    names = split_names("val")
    if given or any(is_dir(parent / name) for name in names) or not is_dir(parent / "test"):
        return []
    print(f"{data}: there is no split {' or '.join(names)}, so test is the test split")
    return ["--data.test-split=test"]


def model_name(word: str) -> str:
    """Return the name of a model; the folder of a run or an export becomes ``local-dir:FOLDER``.

    Raises:
        WeightError: If the folder has no finished weight.
    """
    if ":" in word or not is_dir(local_path(word)):
        return word
    try:
        return f"local-dir:{finished_export(word)}"
    except WeightError:
        if "/" in word:
            raise
        return word  # a folder of another kind has the name of a model


if __name__ == "__main__":
    run_main(main)
