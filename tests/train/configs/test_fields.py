"""Every field of every configuration, taken from the dataclasses themselves."""

import dataclasses
import importlib
import math
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs import fields as bounds
from pcd_hub.train.configs.contrast import CONTRAST
from pcd_hub.train.configs.detection import DETECT
from pcd_hub.train.configs.distill import DISTILL
from pcd_hub.train.configs.fields import Bounds, options
from pcd_hub.train.configs.linear_classification import LINEAR_CLS
from pcd_hub.train.configs.probes import KNN, LINEAR_SEG, LOOK
from pcd_hub.train.configs.segmentation import FINETUNE_SEG
from pcd_hub.train.frozen import compare

MODULES = sorted(path.stem for path in Path(bounds.__file__).parent.glob("*.py"))
GROUPS = {
    kind
    for kind in (
        *(
            kind
            for name in MODULES
            for kind in vars(importlib.import_module(f"pcd_hub.train.configs.{name}")).values()
        ),
        *vars(compare).values(),
    )
    if dataclasses.is_dataclass(kind) and getattr(kind, "__name__", "").endswith("Config")
}
NAMED = {
    f"{number} {name}": config
    for number, configs in enumerate(
        (DISTILL, CONTRAST, DETECT, KNN, LINEAR_SEG, LOOK, FINETUNE_SEG, LINEAR_CLS)
    )
    for name, config in configs.items()
} | {"compare": compare.CompareConfig()}


def bare_numbers(kind: Any) -> bool:
    """Whether a field annotated with ``kind`` may hold a number that nothing bounds."""
    if typing.get_origin(kind) is Annotated and any(
        isinstance(note, Bounds) for note in kind.__metadata__
    ):
        return False
    inner = () if typing.get_origin(kind) is Literal else typing.get_args(kind)
    return kind in {int, float, complex} or any(map(bare_numbers, inner))


def bounds_of(kind: Any) -> list[Bounds]:
    """Those of all numbers that a field annotated with ``kind`` may hold."""
    notes = kind.__metadata__ if typing.get_origin(kind) is Annotated else ()
    inner = () if typing.get_origin(kind) is Literal else typing.get_args(kind)
    found = [note for note in notes if isinstance(note, Bounds)]
    return found + [bound for one in inner for bound in bounds_of(one)]


def with_value(config: Any, name: str, value: object) -> Any:
    """``config`` with the option ``name`` changed, as in ``optim.epochs``."""
    first, _, rest = name.partition(".")
    field = first.replace("-", "_")
    if rest:
        value = with_value(getattr(config, field), rest, value)
    return dataclasses.replace(config, **{field: value})


def out_of(bound: Bounds) -> list[float]:
    step = 1 if bound.number is int else 1e-6
    wrong = [bound.low if bound.above else bound.low - step, True, -math.inf, math.nan, math.inf]
    return [*wrong, bound.high + step]


def test_every_number_of_every_configuration_has_bounds():
    kinds = {
        f"{group.__name__}.{name}": kind
        for group in GROUPS
        for name, kind in typing.get_type_hints(group, include_extras=True).items()
    }
    assert len(GROUPS) > 20
    assert sum(bool(bounds_of(kind)) for kind in kinds.values()) > 70
    assert [name for name, kind in kinds.items() if bare_numbers(kind)] == []
    assert all(map(bare_numbers, (int, float | None, tuple[float, ...], int | Literal["match"])))


@pytest.mark.parametrize("name", NAMED)
def test_no_field_takes_a_number_out_of_its_bounds(name):
    """And every named configuration is within them."""
    config = NAMED[name]
    bounds.check(config)
    for option in options(config):
        for bound in bounds_of(option.kind):
            for wrong in out_of(bound):
                value = (
                    type(option.value)([wrong] * 2) if isinstance(option.value, tuple) else wrong
                )
                changed = with_value(config, option.name.removeprefix("--"), value)
                with pytest.raises(ConfigError, match=f"^{option.name} ") as refused:
                    bounds.check(changed)
                assert bound.words in str(refused.value)
                assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (
            DISTILL["quickstart"],
            {"data.min-crop-area": 0.9, "data.max-crop-area": 0.2},
            "--data.min-crop-area 0.9 is larger than --data.max-crop-area 0.2",
        ),
        (
            FINETUNE_SEG["small"],
            {"data.scales": (2.0, 0.5)},
            "--data.scales 2.0 0.5: expected the smaller first",
        ),
        (
            DETECT["small"],
            {"detector.short-sides": ()},
            "--detector.short-sides: expected one or more",
        ),
        (
            DETECT["small"],
            {"detector.short-sides": (48, 321)},
            "--detector.short-sides 48 321: .* at most --detector.max-long-side 320",
        ),
        (
            CONTRAST["mocov3_r50"],
            {"encoder.arch": "resnet50.a1_in1k"},
            "--encoder.arch resnet50.a1_in1k: expected an architecture .*; use resnet50$",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(config, change, message):
    for name, value in change.items():
        config = with_value(config, name, value)
    with pytest.raises(ConfigError, match=f"^{message}"):
        bounds.check(config)


@pytest.mark.parametrize(
    ("bound", "metavar", "words"),
    [
        (Bounds(int, 1), "INT>=1", "an integer >= 1"),
        (Bounds(int, 0, 9), "INT>=0,<=9", "an integer from 0 to 9"),
        (Bounds(int, 1, 10**9), "INT>=1", "an integer from 1 to 1000000000"),
        (Bounds(float, 0, above=True), "FLOAT>0", "a finite number > 0"),
        (Bounds(float, 0, 1, above=True), "FLOAT>0,<=1", "a number > 0 and <= 1"),
    ],
)
def test_bounds_are_shown_in_help_and_errors(bound, metavar, words):
    assert (bound.metavar, bound.words) == (metavar, words)
