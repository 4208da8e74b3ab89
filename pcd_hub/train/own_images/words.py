"""Separate the words of a distillation's command line, which are images, from its options."""

import typing
from collections.abc import Iterator
from typing import Any

from pcd_hub.train.configs.distill import DistillConfig
from pcd_hub.train.configs.fields import options

_ALONE = ("-h", "--help", "--print-config")


def split_words(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate words from options with their values.

    A word may follow an option that takes one value: ``--run.hours 2 photos``.
    """
    takes_one, takes_none = set(_single_valued()), {*_ALONE, *_switches()}
    words: list[str] = []
    flags: list[str] = []
    free = 0  # values that the last option can still take
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            flag, equals, _ = argument.partition("=")
            flag = flag.replace("_", "-")
            free = 0 if equals or flag in takes_none else 1 if flag in takes_one else len(arguments)
            flags.append(argument)
        elif flags and free:
            free -= 1
            flags.append(argument)
        else:
            words.append(argument)
    return words, flags


def _single_valued() -> Iterator[str]:
    """Yield the options that take exactly one value."""
    yield "--config"
    for option in options(DistillConfig()):
        if option.kind is not bool and not _holds_tuples(option.kind):
            yield option.name


def _switches() -> Iterator[str]:
    """Yield the options without a value."""
    for option in options(DistillConfig()):
        if option.kind is bool:
            yield from option.flags


def _holds_tuples(kind: Any) -> bool:
    inner = typing.get_args(kind)
    return typing.get_origin(kind) is tuple or any(map(_holds_tuples, inner))
