"""The fine-tunings of a comparison: models, shares of the labels and seeds."""

import functools
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pcd_hub.data.labelled.coco import CocoSplit
from pcd_hub.data.labelled.masks.files import has_masks
from pcd_hub.data.labelled.segmentation_set import SegmentationSet
from pcd_hub.data.labelled.subset import coco_subset, segmentation_subset
from pcd_hub.data.sources.uris import is_dir, local_path
from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.models import check_models
from pcd_hub.files.write import atomic_write
from pcd_hub.train.configs.command_line import parse, parse_given
from pcd_hub.train.configs.files import with_fields
from pcd_hub.train.configs.finetune import scaled
from pcd_hub.train.frozen.probe import choose, model_name, named_test_split
from pcd_hub.train.lab.evaluations import RECIPES, Recipe
from pcd_hub.train.lab.jobs import ROWS, Job, read_state, row_folder
from pcd_hub.train.worth.configs.options import SET_BY_WORTH, WorthConfig
from pcd_hub.train.worth.distilled import weight_folder
from pcd_hub.weights.manifest import weights_sha256

log = logging.getLogger("pcd_hub")

Split = SegmentationSet | CocoSplit

_RECIPES = {"segmentation": "finetune_seg", "detection": "detect"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, checked and opened."""

    options: WorthConfig
    folder: Path
    task: str
    recipe: Recipe
    config: Any
    """Configuration of the fine-tuning."""
    models: dict[str, str]
    """Name to open, by the word on the command line; the first is the baseline."""
    train: Split
    test: Split

    @property
    def baseline(self) -> str:
        """The model that the others are compared with."""
        return next(iter(self.models))

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(range(self.options.seeds))

    @property
    def steps(self) -> int:
        """Optimizer steps of one fine-tuning."""
        return scaled(self.config.optim, max_steps=self.config.run.max_steps)[1]

    def subset(self, share: float, seed: int) -> Split:
        """Return the training images that the fine-tunings at one share and seed use."""
        if isinstance(self.train, SegmentationSet):
            return segmentation_subset(self.train, share=share / 100, seed=seed)
        return coco_subset(self.train, share=share / 100, seed=seed)

    def num_labelled(self, share: float) -> int:
        """Return the number of training images at a share."""
        return len(image_names(self.subset(share, self.seeds[0])))

    def job(self, label: str, share: float, seed: int) -> Job:
        """Return one fine-tuning."""
        name = self.models[label]
        return Job(
            folder=row_folder(self.folder, _folder_name(label), seed) / share_name(share),
            model=name,
            config=with_fields(self.config, {"data.train_share": share / 100}),
            set_by_lab=self.recipe.set_by_lab,
            main=self.recipe.main,
            arguments=functools.partial(list, [f"--model={name}", f"--run.seed={seed}"]),
            can_resume=True,
        )

    def runs(self) -> Iterator[tuple[str, float, int]]:
        """Yield model, share and seed of all fine-tunings, ordered so that pairs end together."""
        for seed in self.seeds:
            for share in self.options.shares:
                for label in self.models:
                    yield label, share, seed


def share_name(share: float) -> str:
    """Return the name of the folder of a share's runs."""
    return f"share-{share:g}"


def open_comparison(options: WorthConfig, passed_on: list[str]) -> Comparison:
    """Open the labelled images and check everything that is known before the first step.

    Raises:
        ConfigError: If an option is wrong or a share has fewer images than a batch.
        DataError: If the labelled images cannot be opened.
        StudentError, WeightError: If a model does not exist.
    """
    task = options.task if options.task != "auto" else find_task(options.data, passed_on)
    recipe = RECIPES[_RECIPES[task]]
    config = _configure(recipe, options, passed_on, task)
    names = [model_name(word) for word in options.models]
    check_models(names, range(options.seeds))
    train, test = cast("tuple[Split, Split]", recipe.open_images(config.data))
    comparison = Comparison(
        options=options,
        folder=options.output_dir or Path("runs") / "worth",
        task=task,
        recipe=recipe,
        config=config,
        models=dict(zip(options.models, names, strict=True)),
        train=train,
        test=test,
    )
    _check_batch(comparison)
    return comparison


def find_task(data: str, passed_on: list[str]) -> str:
    """Return the task that fits the labels.

    Raises:
        ConfigError: If there is no such folder.
    """
    folder = local_path(data)
    if is_dir(folder) and not has_masks(folder, "train"):
        return "detection"
    _, what = choose(data, passed_on)
    if not what.startswith("masks"):
        raise ConfigError(
            f"{data} has no masks: expected a segmentation set, with --data.num-classes if it is "
            "on the Hub, or a folder in COCO's format"
        )
    return "segmentation"


def write_plan(comparison: Comparison) -> None:
    """Write the drawn labels and what the runs depend on; refuse to continue with other inputs.

    Raises:
        ConfigError: If the folder has runs on other images or weights.
    """
    folder = comparison.folder
    inputs = {
        "training images": comparison.train.fingerprint(),
        "test images": comparison.test.fingerprint(),
        **{
            f"weights of {label}": weights_sha256(where)
            for label, name in comparison.models.items()
            if (where := weight_folder(name))
        },
    }
    file = folder / "inputs.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    changed = {name: now for name, now in inputs.items() if before.get(name, now) != now}
    if changed and any_done(comparison):
        name, now = next(iter(changed.items()))
        raise ConfigError(
            f"the {name} changed since the runs in {folder}: found {now}, expected "
            f"{before[name]}; restore them, or use another --output-dir"
        )
    if changed:
        log.info("no fine-tuning had finished: all begin again")
        shutil.rmtree(folder / ROWS, ignore_errors=True)
    atomic_write(file, json.dumps(before | inputs, indent=2) + "\n")
    (folder / "labels").mkdir(exist_ok=True)
    for seed in comparison.seeds:
        for share in comparison.options.shares:
            names = image_names(comparison.subset(share, seed))
            drawn = folder / "labels" / f"{share_name(share)}_seed-{seed}.txt"
            atomic_write(drawn, "\n".join(names) + "\n")


def any_done(comparison: Comparison) -> bool:
    """Return whether a fine-tuning in the folder has finished."""
    states = (comparison.folder / ROWS).glob("*/*/*.json")
    return any(read_state(file.with_suffix("")).get("state") == "done" for file in states)


def image_names(split: Split) -> list[str]:
    """Return the names of the images that are trained on, which are their paths if files."""
    if isinstance(split, SegmentationSet):
        return [split.image_name(index) for index in range(len(split))]
    return [str(image.path) for image in split.with_objects()]


def _configure(recipe: Recipe, options: WorthConfig, passed_on: list[str], task: str) -> Any:
    name = options.recipe_config
    is_file = Path(name).suffix in {".yaml", ".yml", ".json"}
    start = [f"--config={name}"] if is_file else [name]
    given = parse_given(recipe.configs, recipe.default, [*start, *passed_on]).given
    own = {f"{word[2:].partition('=')[0].replace('-', '_')}" for word in passed_on}
    for field in sorted(own & given & SET_BY_WORTH):
        option = f"--{field.replace('_', '-')}"
        raise ConfigError(f"{option} is set for each run by pcd-hub worth; leave it out")
    source = [f"--data.source={options.data}"]
    if task == "segmentation" and is_dir(local_path(options.data)):
        source += named_test_split(options.data, passed_on)
    _, config = parse(recipe.configs, recipe.default, [*start, *source, *passed_on])
    if getattr(config.data, "check", False):
        raise ConfigError("--data.check prints labels and trains nothing; use the recipe itself")
    if options.budget is not None:
        config = with_fields(config, {"run.max_steps": options.budget})
    return config


def _check_batch(comparison: Comparison) -> None:
    smallest, batch = min(comparison.options.shares), comparison.config.optim.global_batch_size
    count = len(image_names(comparison.subset(smallest, 0)))
    if count < batch:
        raise ConfigError(
            f"--shares {smallest:g}: {count} images, expected at least {batch}, one batch; use a "
            "larger share, or a smaller --optim.global-batch-size"
        )


def _folder_name(label: str) -> str:
    """Return a readable name that is unique to a model."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", label).strip("_.")[-40:]
    return f"{readable}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
