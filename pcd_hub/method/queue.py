"""A ring of negative keys."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The last ``length`` keys that were pushed, L2-normalised; random unit vectors before that.

    It is a module only for its ``state_dict`` and ``.to``: keep it beside the wrapped model, not
    inside, or DistributedDataParallel sends it over the wire at every step.
    """

    keys: Float[Tensor, "k c"]
    cursor: Int64[Tensor, ""]

    def __init__(self, length: int, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        if length < 1 or dim < 1:
            raise ValueError(
                f"a queue of {length} keys with {dim} channels is empty; both must be at least 1"
            )
        noise = torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("keys", F.normalize(noise, dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """As of every module; of a queue of another length the newest keys are taken.

        Where that one was shorter, random unit vectors stay in the places of the oldest keys.
        """
        keys = state_dict["keys"]
        if len(keys) == len(self.keys):
            return super().load_state_dict(state_dict, *args, **options)
        self.cursor.zero_()
        self.push(keys.roll(-int(state_dict["cursor"]), 0).to(self.keys.device))  # oldest first
        return None

    def newest(self, count: int) -> Float[Tensor, "n c"]:
        """The last ``count`` keys that were pushed, the newest first; at most all there are."""
        back = torch.arange(1, min(count, len(self.keys)) + 1, device=self.keys.device)
        return self.keys[(self.cursor - back) % len(self.keys)]

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "b c"]) -> None:
        """Overwrite the oldest keys with ``keys``, in order.

        Any batch size; of more than ``length`` the last stay.
        """
        newest = F.normalize(keys.to(self.keys.dtype), dim=1)[-len(self.keys) :]
        skipped = len(keys) - len(newest)
        places = torch.arange(skipped, len(keys), device=self.keys.device)
        self.keys[(self.cursor + places) % len(self.keys)] = newest
        self.cursor.add_(len(keys)).remainder_(len(self.keys))
