"""Variables of launchers, SLURM, MPI and users: followed, or rejected by name."""

import pytest
import torch

from pcd_hub.data import workers
from pcd_hub.data.workers import num_cores
from pcd_hub.errors import ConfigError
from pcd_hub.train import environment as launch_environment
from pcd_hub.train import launch
from pcd_hub.train.environment import num_threads

SET_BY_LAUNCHERS = (
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"),
    *("ACCELERATE_MIXED_PRECISION", "SLURM_CPUS_PER_TASK", "SLURM_STEP_NUM_TASKS"),
)
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}


@pytest.fixture
def environ(monkeypatch):
    """Set these variables, and of the launchers' no others."""

    def setting(variables: dict[str, str]) -> None:
        for name in SET_BY_LAUNCHERS:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return setting


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "_STEPS=4 .*--optim.accumulation-steps"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, "_STEPS=auto is not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP=true: FSDP is not supported"),
        ({"ACCELERATE_USE_DEEPSPEED": "1"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "True"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "a parallelism configuration is not"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "_BACKEND=INDUCTOR .*--speed.compile"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "_PRECISION=fp8 .*--speed.precision"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, "8 copies were started.*Use srun"),
        ({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "1"}, "2 copies .*sees only 1: they would"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: 2 copies .*Use torchrun"),
    ],
)
def test_unsupported_settings_are_rejected_by_name(environ, monkeypatch, variables, message):
    environ(variables)
    alone = type("Alone", (), {"num_processes": 1, "is_main_process": True, "__init__": _ignore})
    monkeypatch.setattr(launch, "Accelerator", alone)
    with pytest.raises(ConfigError, match=message):
        launch.start_accelerator()


def _ignore(self, **_):
    pass


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script, one process
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_USE_FSDP": "false"},
        ACCELERATE,
    ],
)
def test_settings_that_launchers_always_make_are_accepted(environ, variables):
    environ(variables)
    assert launch.start_accelerator().gradient_accumulation_steps == 1


def test_joined_tasks_are_accepted():
    two_nodes = {"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "16"}
    launch_environment.check_processes_are_joined(two_nodes, 16)


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, 8),
        ({"OMP_NUM_THREADS": "3"}, None),
        ({"OMP_NUM_THREADS": "3,2"}, None),
        ({"OMP_NUM_THREADS": "1"}, None),
        ({"OMP_NUM_THREADS": ""}, 8),
        ({"OMP_NUM_THREADS": "many"}, 8),
        (TORCHRUN, 4),
        (TORCHRUN | {"OMP_NUM_THREADS": "1"}, 4),
        (TORCHRUN | {"OMP_NUM_THREADS": "2"}, None),
        (ACCELERATE | {"OMP_NUM_THREADS": "1"}, 8),
        (ACCELERATE | {"OMP_NUM_THREADS": "2"}, None),
        ({"SLURM_CPUS_PER_TASK": "6"}, 6),
        ({"SLURM_CPUS_PER_TASK": "64"}, 8),
        ({"SLURM_CPUS_PER_TASK": "6", **TORCHRUN}, 3),
        ({"SLURM_CPUS_PER_TASK": "3", **TORCHRUN, "SLURM_STEP_NUM_TASKS": "2"}, 3),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
    ],
)
def test_the_number_of_threads_follows_the_user_or_slurm(variables, threads):
    """On a machine of which this process may use eight cores."""
    assert num_threads(variables, num_cores(variables, usable=8)) == threads


@pytest.mark.parametrize(("variables", "expected"), [({"OMP_NUM_THREADS": "3"}, []), ({}, [8])])
def test_the_users_number_of_threads_is_kept(environ, monkeypatch, variables, expected):
    environ(variables)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    found = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    launch.start_accelerator()
    assert found == expected


def test_loaders_use_only_the_cores_of_this_process(environ, monkeypatch):
    environ({"LOCAL_WORLD_SIZE": "2"})
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    gpu = torch.device("cuda")
    assert workers.default_workers(gpu) == 3
    environ({})
    assert workers.default_workers(gpu) == 7
    assert workers.default_workers(torch.device("cpu")) == 1
    assert num_cores({}, usable=0) == 1
