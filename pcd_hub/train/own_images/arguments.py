"""Words of a distillation's command line: a named configuration, images, and short options."""

import itertools
import logging
from contextlib import suppress
from pathlib import Path

from pcd_hub.data.sources.uris import exists, local_path
from pcd_hub.errors import ConfigError, nearest
from pcd_hub.train.configs.command_line import Parsed, parse_given
from pcd_hub.train.configs.distill import DISTILL, DistillConfig
from pcd_hub.train.configs.fields import as_typed
from pcd_hub.train.own_images.options import with_long_options
from pcd_hub.train.own_images.short_options import SHORT_OPTIONS
from pcd_hub.train.own_images.words import split_words

log = logging.getLogger("pcd_hub")

DEFAULT = "quickstart"
FOR_IMAGES = "own_images"
"""Configuration of a command line that starts with images."""

_SOURCE = "--data.source"
_USAGE = f"""\
IMAGES: folders, files, globs, lists or data sets, as in {_SOURCE}. Without a configuration before
them, the settings are derived from the images and the device (configuration {FOR_IMAGES}).
{", ".join(SHORT_OPTIONS)}: short for {", ".join(SHORT_OPTIONS.values())}.
pcd-hub distill --json: print a list of {{run, export, record}}, one for each student.

Examples:
  pcd-hub distill                            {DEFAULT}: offline, on a CPU, in minutes
  pcd-hub distill photos --hours 2           your own images
  pcd-hub distill photos 'more/*.jpg' --student mobilenetv4_conv_small --teacher timm:NAME
  pcd-hub distill photos --student resnet18,mobilenetv4_conv_small       two students, one pass
  pcd-hub distill photos --hours 2 --probe-data labelled     mean IoU on labelled images as it goes
  pcd-hub distill photos --hours 2 --optim.global-batch-size 64 --run.name resnet18.pcd_photos
  pcd-hub distill --resume runs/own_images --hours 2       continue a run, two hours more
  pcd-hub distill --config runs/own_images/config.json     the same settings again"""


def parse_distill(arguments: list[str]) -> Parsed[DistillConfig]:
    """Parse ``[CONFIG] [IMAGES ...] [--hours H] [--group.field VALUE ...]``.

    Without any word the configuration is ``quickstart``; with images alone, ``own_images``.

    Raises:
        ConfigError: If a word is neither a configuration nor images, or an option is wrong.
    """
    words, flags = split_words(with_long_options(arguments))
    name, images = _configuration(words)
    if images:
        if _SOURCE in {flag.partition("=")[0] for flag in flags}:
            raise ConfigError(
                f"images are given twice: {as_typed(tuple(images))} and {_SOURCE}; name all of "
                "them in one place"
            )
        flags = [_SOURCE, *images, *flags]
    usage = _USAGE
    if not name and {"-h", "--help"} & set(flags) and "--config" not in flags:
        name = FOR_IMAGES  # the defaults that most people want to see
    if name and (derived := sorted(DISTILL[name].derived)):
        usage += (
            f"\n\nThe defaults below are those of {name}. Without --no-derive, these options are "
            f"derived unless given, whatever default is printed: {', '.join(derived)}"
        )
    return parse_given(DISTILL, DEFAULT, [*([name] if name else []), *flags], usage=usage)


def _configuration(words: list[str]) -> tuple[str, list[str]]:
    """Return the name of the configuration, empty for the default, and the images."""
    if not words:
        return "", []
    name, *images = words
    if name not in DISTILL:
        name, images = FOR_IMAGES, words
    elif exists(Path(name)):
        log.warning("%s is the configuration of that name; for the folder write ./%s", name, name)
    for word in images:
        _check_images(word, is_first=word == words[0])
    return name, images


def _check_images(word: str, *, is_first: bool) -> None:
    """Reject a misspelt name and a missing path; globs and URIs are checked when they are opened.

    Raises:
        ConfigError: If there is no such path, and the word is neither a glob nor a URI.
    """
    shown = as_typed(word)
    if Path(word).suffix in {".json", ".yaml", ".yml"}:
        raise ConfigError(
            f"no configuration and no images '{shown}'; for a file of settings use --config {shown}"
        )
    if exists(local_path(word)) or set(word) & set(":*?[{"):
        return
    images = "a folder, a file, a glob, or a data set such as hf:ORG/NAME"
    beside = _names_beside(Path(word))
    if not is_first or "/" in word:
        raise ConfigError(f"no images '{shown}'{nearest(word, beside)}; expected {images}")
    guess = nearest(word, (*DISTILL, *beside))
    raise ConfigError(
        f"no configuration and no images '{shown}'{guess}; expected one of {', '.join(DISTILL)}, "
        f"or {images}"
    )


def _names_beside(path: Path) -> list[str]:
    """Return what the parent folder contains, written like ``path``; empty if it has none."""
    with suppress(OSError):
        return [
            str(path.with_name(one.name)) for one in itertools.islice(path.parent.iterdir(), 500)
        ]
    return []
