"""Command line that joins the tables of several evaluations (``recipes/compare.py``)."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.comparison import add_to_weight, joined_tables
from pcd_hub.train.configs.command_line import override, run_main
from pcd_hub.train.run_folder.folder import new_folder
from pcd_hub.weights.manifest import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Output in addition to the terminal."""

    output_dir: Path | None = None
    """Write comparison.md and comparison.json into this folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Join the tables of evaluations; add them to a weight's record."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders that contain evaluations, at any depth."""
    run: ComparisonConfig = dataclasses.field(default_factory=ComparisonConfig)
    into: str | None = None
    """Add the tables to the record and card of this weight: a name in the local store, or the
    folder of an export."""


def main(arguments: list[str]) -> None:
    """Join the tables, print them and write them."""
    config = override(CompareConfig(), arguments)
    if not config.runs:
        raise ConfigError("no run: expected at least one, pcd-hub compare runs/linear_seg")
    tables = joined_tables(config.runs)
    text = "\n\n".join(table.table() for table in tables)
    print(text)
    if config.run.output_dir:
        folder = new_folder(config.run.output_dir, "comparison")
        (folder / "comparison.md").write_text(text + "\n")
        write_json(folder / "comparison.json", [dataclasses.asdict(table) for table in tables])
    if config.into:
        print(f"\nadded to the record and card of {add_to_weight(config.into, tables)}")


if __name__ == "__main__":
    run_main(main)
