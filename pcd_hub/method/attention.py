"""Self-attention over the positions of the last feature map."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SelfAttention2d(nn.Module):
    """Residual self-attention, ``x + Proj(MHSA(Norm(x)))``, over the positions of a feature map.

    PCD adds multi-head self-attention to the student to widen its effective receptive field. The
    authors' released code does not contain it; this implementation is a pre-norm residual block
    after the last stage, for any grid size. The projection starts at zero, so a new block is the
    identity. The number of heads is part of the architecture and cannot be inferred from the
    weights, because it affects no parameter's shape.

    Raises:
        ValueError: If ``dim`` is not a multiple of ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide dim={dim}; use a divisor of {dim}"
            )
        self.num_heads = num_heads
        self.norm = nn.BatchNorm2d(dim, device=device, dtype=dtype)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False, device=device, dtype=dtype)
        self.proj = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)
        nn.init.trunc_normal_(self.qkv.weight, std=0.02)
        nn.init.zeros_(self.proj.weight)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        qkv = (
            self.qkv(self.norm(x))
            .reshape(b, 3, self.num_heads, c // self.num_heads, h * w)
            .transpose(-1, -2)
        )
        query, key, value = qkv.unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj(mixed.transpose(-1, -2).reshape(b, c, h, w))
