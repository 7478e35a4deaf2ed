"""Attention that keeps several texts in one row apart."""

from __future__ import annotations

from typing import Any

import torch


def block_diagonal(segments_BS: torch.Tensor, model: Any) -> torch.Tensor:
    """Mask [B, 1, S, S]: a token sees earlier tokens of its own segment only.

    Padding (segment 0) sees padding, so that no row of the softmax is empty. SDPA takes a boolean
    mask whatever the compute type; other implementations add the mask, so they get a float one.
    """
    same = segments_BS[:, None, :, None] == segments_BS[:, None, None, :]
    length = segments_BS.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments_BS.device).tril()
    mask = same & causal
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        return mask
    dtype = torch.bfloat16 if segments_BS.is_cuda else torch.float32
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
