"""Checks of the environment variables set by launchers, SLURM, MPI and users."""

from collections.abc import Mapping

from pcd_hub.data.workers import read_count
from pcd_hub.errors import ConfigError

_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
_TORCHRUN = (
    "torchrun --nnodes NODES --nproc_per_node N --rdzv_backend c10d --rdzv_endpoint NODE0:29500"
)
_TASKS = {
    "SLURM_STEP_NUM_TASKS": f"srun --ntasks-per-node 1 {_TORCHRUN} recipes/... (separate runs: "
    "srun --ntasks 1 each)",
    "OMPI_COMM_WORLD_SIZE": f"{_TORCHRUN} recipes/... on each node",
    "PMI_SIZE": f"{_TORCHRUN} recipes/... on each node",
    "MV2_COMM_WORLD_SIZE": f"{_TORCHRUN} recipes/... on each node",
}
"""Variables with the number of copies of a command, and the command to use instead.

``SLURM_NTASKS`` is not included: it is also set in a batch script, which is a single process.
"""


def check_launcher_settings(environ: Mapping[str, str]) -> None:
    """Reject settings that the Accelerator would apply but the training loop does not support.

    Raises:
        ConfigError: If ``accelerate launch`` or its configuration file requests sharded training,
            gradient accumulation, compilation, or an unsupported precision.
    """
    for name, feature in _UNSUPPORTED.items():
        if environ.get(name, "false").lower() in {"1", "true", "yes", "on", "y", "t"}:
            raise ConfigError(
                f"{name}={environ[name]}: {feature} is not supported, every process holds the "
                "whole network; launch with --multi_gpu, or run `accelerate config` again"
            )
    for name, supported, option in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", {"1"}, "--optim.accumulation-steps"),
        ("ACCELERATE_DYNAMO_BACKEND", {"no"}, "--speed.compile"),
        ("ACCELERATE_MIXED_PRECISION", {"no", "fp16", "bf16"}, "--speed.precision"),
    ):
        value = environ.get(name, "").lower()
        if value and value not in supported:
            raise ConfigError(
                f"{name}={environ[name]} is not supported, expected "
                f"{' or '.join(sorted(supported))}; remove it from the options "
                "of `accelerate launch` and from its configuration file, and use "
                f"{option} if the recipe has it"
            )


def check_processes_are_joined(environ: Mapping[str, str], num_processes: int) -> None:
    """Check that copies of one command do not train separately into the same folder.

    Args:
        environ: Environment of this process.
        num_processes: Processes that train together.

    Raises:
        ConfigError: If SLURM or MPI started more.
    """
    for name, command in _TASKS.items():
        if (tasks := read_count(environ, name)) > num_processes:
            raise ConfigError(
                f"{name}={tasks}: {tasks} copies were started, but each sees only "
                f"{num_processes}: they would train the same thing separately. Use {command}"
            )


def num_threads(environ: Mapping[str, str], cores: int) -> int | None:
    """Return the number of CPU threads; None if ``OMP_NUM_THREADS`` sets it.

    torchrun and ``accelerate launch`` set ``OMP_NUM_THREADS=1`` if it is not set. Under a launcher,
    a value of 1 is therefore ignored, and the processes share the cores.

    Args:
        environ: Environment of this process.
        cores: Cores of this process, as :func:`num_cores` counts them.
    """
    value = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    several = "TORCHELASTIC_RUN_ID" in environ and read_count(environ, "LOCAL_WORLD_SIZE") > 1
    from_launcher = value == "1" and (several or "ACCELERATE_MIXED_PRECISION" in environ)
    return None if value.isdecimal() and int(value) and not from_launcher else cores
