"""Queue of negative keys."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """Ring buffer of the last ``length`` keys, L2-normalised; it starts with random unit vectors.

    It is a module only for ``state_dict`` and ``.to``. Keep it outside the wrapped model: inside,
    DistributedDataParallel would broadcast it at every step.
    """

    keys: Float[Tensor, "k c"]
    cursor: Int64[Tensor, ""]

    def __init__(self, length: int, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        if length < 1 or dim < 1:
            raise ValueError(
                f"length={length}, dim={dim}: expected a queue of at least 1 key and 1 channel"
            )
        noise = torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("keys", F.normalize(noise, dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Load the state of a queue of any length.

        From a longer queue, the newest keys are kept; from a shorter one, the remaining places keep
        their random unit vectors and count as the oldest keys.
        """
        keys = state_dict["keys"]
        if len(keys) == len(self.keys):
            return super().load_state_dict(state_dict, *args, **options)
        self.cursor.zero_()
        self.push(keys.roll(-int(state_dict["cursor"]), 0).to(self.keys.device))  # oldest first
        return None

    def newest(self, count: int) -> Float[Tensor, "n c"]:
        """Return the last ``count`` keys, newest first; at most all keys."""
        back = torch.arange(1, min(count, len(self.keys)) + 1, device=self.keys.device)
        return self.keys[(self.cursor - back) % len(self.keys)]

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "b c"]) -> None:
        """Overwrite the oldest keys with ``keys``, in order.

        The batch may have any size; if it exceeds ``length``, its last ``length`` keys remain.
        """
        newest = F.normalize(keys.to(self.keys.dtype), dim=1)[-len(self.keys) :]
        skipped = len(keys) - len(newest)
        places = torch.arange(skipped, len(keys), device=self.keys.device)
        self.keys[(self.cursor + places) % len(self.keys)] = newest
        self.cursor.add_(len(keys)).remainder_(len(self.keys))
