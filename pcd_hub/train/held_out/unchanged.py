"""Measure a network during a run without changing anything of the run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def unchanged(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Set eval mode, without compilation; restore modes and random state.

    Args:
        network: The network with everything that is measured.
        device: Device whose random state is restored, besides the CPU's.
    """
    training = {module: module.training for module in network.modules()}
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # other shapes
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        network.eval()
        try:
            yield
        finally:
            for module, mode in training.items():  # the inner ones last
                module.train(mode)  # which also clears what some of timm's keep in eval mode
