"""The command line that joins tables."""

import json

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.train.frozen import compare
from pcd_hub.weights import store
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import weights_sha256
from tests.evaluate.tables import table
from tests.weights.making import exported


def test_tables_are_printed_written_and_added_to_a_weight(tmp_path, capsys):
    export = exported(tmp_path / "export")
    store.add("test_resnet.pcd", export)
    table(weights_sha256={"net.pcd": weights_sha256(export)}).save(tmp_path / "eval")
    out = tmp_path / "out"
    compare.main(
        [str(tmp_path / "eval"), "--into", "test_resnet.pcd", "--run.output-dir", str(out)]
    )
    printed = capsys.readouterr().out
    assert "12.00 ± 2.83" in printed
    assert "added to the record and card of" in printed
    assert "| model |" in (out / "comparison.md").read_text()
    assert json.loads((out / "comparison.json").read_text())[0]["images"] == 90
    record = read_weight(store.where("test_resnet.pcd")).record
    assert len(record.measurements()) == 3, "two metrics, and the scene probe"


def test_a_command_line_without_a_run_is_an_error():
    with pytest.raises(ConfigError, match="no run: expected at least one"):
        compare.main([])


def test_help_ends_with_examples(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    assert "pcd-hub compare runs/linear_seg --into resnet18.pcd" in capsys.readouterr().out
