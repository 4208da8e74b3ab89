"""Two processes train several students as they train each alone."""

import os

import pytest
from accelerate.state import AcceleratorState

from pcd_hub.train import distill
from tests.processes import free_ports, start_processes
from tests.train.conftest import leave_out_pictures, watch_the_end
from tests.train.students.conftest import ARCHITECTURES, assert_equal_runs


def _one_process(_: int, ports: list[int], arguments: list[str], root) -> None:
    leave_out_pictures(pytest.MonkeyPatch())
    watch_the_end((distill, "save_weight"))
    start = distill.start_accelerator

    def start_anew(**options):
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["MASTER_PORT"] = str(ports.pop())
        return start(**options)

    distill.start_accelerator = start_anew
    for names in (",".join(ARCHITECTURES), *ARCHITECTURES):
        folder = root / ("together" if "," in names else f"separate/{names}")
        distill.main([*arguments, f"--student.arch={names}", f"--run.output-dir={folder}"])


@pytest.mark.timeout(300)
def test_two_processes_equal_separate_runs(several, tmp_path):
    start_processes(_one_process, (free_ports(3), several, tmp_path))
    assert_equal_runs(tmp_path / "together", tmp_path / "separate")
