"""Check before the first step that a run can write its results; explain failures at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from pcd_hub.errors import CheckpointError, ConfigError, PCDHubError, first_line
from pcd_hub.files.writable import check_temporary_folder, check_writable
from pcd_hub.train.configs.run import RunConfig
from pcd_hub.train.launch import from_main_process
from pcd_hub.train.run_folder.how_to_continue import how_to_continue
from pcd_hub.train.signals import stopping_at_once
from pcd_hub.weights import store


def check_places(
    accelerator: Accelerator, network: nn.Module, *, run: RunConfig, stored_as: str | None
) -> None:
    """Check that temporary folder, run folder and store can be written and have enough space.

    Args:
        accelerator: The run's Accelerator; its main process writes to run folder and store.
        network: Network to save, which determines the space.
        run: Folder of the run, which need not exist, and number of checkpoints.
        stored_as: Name of the weight in the store; None if it is not stored.

    Raises:
        ConfigError: On every process, if one of them cannot be written or has too little space.
    """
    num_bytes = sum(value.nbytes for value in network.state_dict().values())
    check_temporary_folder(num_bytes=num_bytes if stored_as else 0)
    failure = ""
    if accelerator.is_main_process:
        try:
            # A checkpoint has the weights and, with AdamW, two more values for each; one more is
            # written before the oldest is removed. A run that is resumed has the others.
            checkpoints = 1 if run.resume else run.keep_checkpoints + 1
            space = (3 * checkpoints + 1) * num_bytes
            check_run_folder(run.output_dir or Path("runs"), num_bytes=space)
            if stored_as:
                store.check_can_add(stored_as, num_bytes=num_bytes)
        except PCDHubError as error:
            failure = str(error)
    if failure := str(from_main_process(accelerator, failure)):
        raise ConfigError(failure)


def check_run_folder(folder: Path, *, num_bytes: int = 0) -> None:
    """Check that a run can write to a folder, which need not exist.

    Raises:
        ConfigError: If it cannot be written, or has less space than ``num_bytes``.
    """
    check_writable(
        folder,
        what="the run's folder",
        remedy="name another --run.output-dir",
        num_bytes=num_bytes,
    )


@contextmanager
def finishing(folder: Path) -> Iterator[None]:
    """Explain a failed write or a signal after the last step, whose checkpoint has the result.

    Raises:
        CheckpointError: For any OSError inside the block.
        StoppedRun: When a signal asks to stop.
    """
    try:
        with stopping_at_once(folder):
            yield
    except OSError as error:
        raise CheckpointError(
            f"the training is complete, but its result cannot be written: {first_line(error)}; "
            f"free some space; {how_to_continue(folder)} writes it, without further training"
        ) from error
