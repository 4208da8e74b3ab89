"""The environment that a launcher, SLURM, MPI or a person hands to a recipe: obeyed, or refused."""

from collections.abc import Mapping

from pcd_hub.data.workers import count_of
from pcd_hub.errors import ConfigError

_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
_TOGETHER = (
    "torchrun --nnodes NODES --nproc_per_node N --rdzv_backend c10d --rdzv_endpoint NODE0:29500"
)
_TASKS = {
    "SLURM_STEP_NUM_TASKS": f"srun --ntasks-per-node 1 {_TOGETHER} recipes/... (separate runs: "
    "srun --ntasks 1 each)",
    "OMPI_COMM_WORLD_SIZE": f"{_TOGETHER} recipes/... on each node",
    "PMI_SIZE": f"{_TOGETHER} recipes/... on each node",
    "MV2_COMM_WORLD_SIZE": f"{_TOGETHER} recipes/... on each node",
}
"""Variables with the number of copies of a command, and the command that joins them.

``SLURM_NTASKS`` is not among them: a batch script has it too, and is one process.
"""


def check_launcher_settings(environ: Mapping[str, str]) -> None:
    """Refuse settings that the Accelerator would obey and the training loops do not expect.

    Raises:
        ConfigError: For sharded training, gradient accumulation, compilation or a precision that
            ``accelerate launch`` or its configuration file asks for and no recipe implements.
    """
    for name, what in _UNSUPPORTED.items():
        if environ.get(name, "false").lower() in {"1", "true", "yes", "on", "y", "t"}:
            raise ConfigError(
                f"{name}={environ[name]}: {what} is not supported, every process holds the whole "
                "network; launch with --multi_gpu, or run `accelerate config` anew"
            )
    for name, neutral, option in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", {"1"}, "--optim.accumulation-steps"),
        ("ACCELERATE_DYNAMO_BACKEND", {"no"}, "--speed.compile"),
        ("ACCELERATE_MIXED_PRECISION", {"no", "fp16", "bf16"}, "--speed.precision"),
    ):
        value = environ.get(name, "").lower()
        if value and value not in neutral:
            raise ConfigError(
                f"{name}={environ[name]} is not supported; unset it, in the options of "
                f"`accelerate launch` and its configuration file too, and see whether the recipe "
                f"has {option}"
            )


def check_processes_are_joined(environ: Mapping[str, str], num_processes: int) -> None:
    """Refuse copies of one command that would each train alone, all into one folder.

    Args:
        environ: Of this process.
        num_processes: How many train together.

    Raises:
        ConfigError: If SLURM or MPI started more.
    """
    for name, command in _TASKS.items():
        if (tasks := count_of(environ, name)) > num_processes:
            raise ConfigError(
                f"{name}={tasks}: {tasks} copies were started, but each believes to be one of "
                f"{num_processes}: they would train the same thing apart. Use {command}"
            )


def num_threads(environ: Mapping[str, str], cores: int) -> int | None:
    """Threads for computation on the CPU; None where ``OMP_NUM_THREADS`` is obeyed.

    torchrun and ``accelerate launch`` set ``OMP_NUM_THREADS=1`` where nobody set it: under them a
    1 is taken for theirs, and the cores are shared between the processes instead.

    Args:
        environ: Of this process.
        cores: Of this process, as :func:`num_cores` counts them.
    """
    asked = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    several = "TORCHELASTIC_RUN_ID" in environ and count_of(environ, "LOCAL_WORLD_SIZE") > 1
    by_a_launcher = asked == "1" and (several or "ACCELERATE_MIXED_PRECISION" in environ)
    return None if asked.isdecimal() and int(asked) and not by_a_launcher else cores
