"""Two processes: one of them scores, and both end early at the same step."""

import json
import os

import pytest

from pcd_hub.train import distill
from pcd_hub.train.held_out import held_out as module
from pcd_hub.train.held_out import plateau as rules
from pcd_hub.train.held_out.scorer import Scorer
from pcd_hub.train.probe_data.scores import ProbeScores
from tests.evaluate.drawn_sets import draw_segmentation
from tests.processes import free_ports, start_processes
from tests.train.conftest import leave_out_pictures, trace, watch_the_end
from tests.train.held_out.conftest import history


def _one_process(rank: int, port: int, arguments: list[str]) -> None:
    os.environ["MASTER_PORT"] = str(port)
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "plateau", lambda losses: len(losses) >= 4)
    patch.setattr(rules, "DECAY_SHARE", 0.5)
    if rank:
        patch.setattr(Scorer, "score", None)
        patch.setattr(ProbeScores, "score", None)
    leave_out_pictures(pytest.MonkeyPatch())
    watch_the_end((distill, "save_weight"))
    distill.main(arguments)


@pytest.mark.timeout(300)
def test_two_processes_decide_the_same(measured, tmp_path):
    arguments = [*measured, "--run.max-steps=40", "--run.stop-on-plateau"]
    arguments.append(f"--run.output-dir={tmp_path / 'run'}")
    arguments.append(f"--probe-data={draw_segmentation(tmp_path / 'labelled')}")
    start_processes(_one_process, (free_ports(1)[0], arguments))
    assert len(trace(tmp_path / "run")) == 12
    assert [line["step"] for line in history(tmp_path / "run")] == [0, 2, 4, 6, 8, 10, 12]
    probed = (tmp_path / "run" / "probe_data.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in probed] == [0, 2, 4, 6, 8, 10, 12]
    stated = json.loads((tmp_path / "run" / "record.json").read_text())["held_out"]
    assert (stated["stopped_early"], stated["last_step"]) == (True, 12)
