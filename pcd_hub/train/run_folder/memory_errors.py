"""Explain errors of a run whose memory does not suffice."""

import torch

from pcd_hub.errors import first_line

_CPU_MESSAGES = ("can't allocate memory", "not enough memory", "Unable to allocate")


def explained(error: RuntimeError | MemoryError) -> str | None:
    """Return one line with the remedy; None for an error of another kind.

    Args:
        error: Raised anywhere in the main process, also when a worker of a DataLoader dies.
    """
    line = first_line(error).rstrip(" .")
    if line.startswith("DataLoader worker"):
        remedy = "provide more memory (docker run --shm-size 32g) or use --data.num-workers 0"
        return f"{line}; {remedy}, then resume the run"
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if out_of_memory or any(message in line for message in _CPU_MESSAGES):
        return (
            f"out of memory ({line[:200]}); lower --optim.global-batch-size or --data.image-size, "
            "or raise --optim.accumulation-steps, which keeps the batch"
        )
    return None
