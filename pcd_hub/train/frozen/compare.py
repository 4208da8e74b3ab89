"""Command line that joins the tables of several evaluations (``recipes/compare.py``)."""

import dataclasses
from typing import Any

from pcd_hub.errors import ConfigError
from pcd_hub.evaluate.comparison import add_to_weight, joined_tables
from pcd_hub.train.configs.command_line import override, run_main
from pcd_hub.train.configs.probes import CompareConfig
from pcd_hub.train.run_folder.folder import new_folder
from pcd_hub.weights.manifest import write_json

_DESCRIPTION = """\
Join the tables of evaluations; add them to a weight's record.

pcd-hub compare --json prints a list of {task, dataset, protocol, protocol_version, images, seeds,
units, scores}.

Examples:
  pcd-hub compare runs/linear_seg runs/linear_seg_2
  pcd-hub compare runs/linear_seg --into resnet18.pcd
  pcd-hub compare results.jsonl"""


def main(arguments: list[str]) -> list[dict[str, Any]]:
    """Join the tables, print them and write them; return them as JSON values."""
    config = override(CompareConfig(), arguments, description=_DESCRIPTION)
    if not config.runs:
        raise ConfigError("no run: expected at least one, pcd-hub compare runs/linear_seg")
    tables = joined_tables(config.runs)
    values = [dataclasses.asdict(table) for table in tables]
    text = "\n\n".join(table.table() for table in tables)
    print(text)
    if config.run.output_dir:
        folder = new_folder(config.run.output_dir, "comparison")
        (folder / "comparison.md").write_text(text + "\n")
        write_json(folder / "comparison.json", values)
    if config.into:
        print(f"\nadded to the record and card of {add_to_weight(config.into, tables)}")
    return values


if __name__ == "__main__":
    run_main(main)
