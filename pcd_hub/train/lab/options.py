"""Options of ``recipes/lab.py``."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pcd_hub.errors import ConfigError
from pcd_hub.train.configs.command_line import override
from pcd_hub.train.configs.fields import Seed


@dataclass(frozen=True, kw_only=True)
class LabConfig:
    """Run the distillations and evaluations that a file lists, one after the other.

    The same command continues after an interruption: what is finished is skipped, what was begun
    is resumed. The table is written to OUTPUT-DIR/table.md and table.json after every row.
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """YAML file with the list, such as recipes/configs/lab_photos.yaml."""
    output_dir: Path | None = None
    """Folder of all results. None: runs/NAME of the file."""
    images: tuple[str, ...] = ()
    """Training images, as in --data.source of distill.py. Default: those of the file."""
    teacher: str | None = None
    """Teacher, as in --teacher.source of distill.py. Default: that of the file."""
    labelled: Path = Path()
    """Folder that contains the labelled sets of the evaluations. Default: the working folder."""
    only: tuple[str, ...] = ()
    """Rows to run. Default: all."""
    evaluations: tuple[str, ...] = ()
    """Evaluations to run. Default: all."""
    seeds: tuple[Seed, ...] = ()
    """Training seeds: all rows with the first, then all with the second ...
    Default: those of the file."""
    retry_failed: bool = False
    """Run again what has failed; otherwise it stays failed."""
    table: bool = False
    """Only write and print the table of what is finished."""


def parse_lab(arguments: list[str]) -> tuple[LabConfig, Path, Path]:
    """Return the options, the file with the list and the output folder.

    Seeds may be separated by commas (``--seeds 0,1,2``).

    Raises:
        ConfigError: If an option is wrong or no file is given.
    """
    split = [
        part
        for argument in arguments
        for part in (argument.split(",") if re.fullmatch(r"\d+(,\d+)+", argument) else [argument])
    ]
    config = override(LabConfig(), split)
    if config.file is None:
        raise ConfigError(
            "no list of runs: expected a YAML file, such as recipes/configs/lab_photos.yaml"
        )
    return config, config.file, config.output_dir or Path("runs") / config.file.stem
