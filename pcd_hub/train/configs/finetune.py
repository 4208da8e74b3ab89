"""Settings shared by recipes that train on labels: detection, segmentation, classification."""

from dataclasses import dataclass

from pcd_hub.train.configs.fields import Count, NotNegative, Positive, Share
from pcd_hub.train.configs.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class SGDConfig:
    """SGD and its schedule, stated for a reference batch size.

    With a global batch size of B the learning rate is multiplied by B / reference-batch-size and
    the iterations are divided by it, so that training sees the same number of images.
    """

    reference_batch_size: Count = 16
    """Batch size for which lr and iterations are stated."""
    global_batch_size: Count = 16
    """Images per step, summed over processes."""
    lr: Positive
    """Peak learning rate at the reference batch size."""
    iterations: Count
    """Number of steps at the reference batch size."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 1e-4
    """Weight decay; not applied to norms."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRunConfig(RunConfig):
    """Output folder, length, seed and logging. Only seed and max-steps change the result."""

    log_every_steps: Count = 20
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every_steps: Count = 2000
    """Steps between two checkpoints."""


def scaled(config: SGDConfig, *, max_steps: int | None) -> tuple[float, int]:
    """Return peak learning rate and number of steps for the configured global batch size.

    Args:
        config: The schedule, stated for its ``reference_batch_size``.
        max_steps: If given, fit the schedule to this many steps.
    """
    larger = config.global_batch_size / config.reference_batch_size
    steps = max(1, round(config.iterations / larger)) if max_steps is None else max_steps
    return config.lr * larger, steps
