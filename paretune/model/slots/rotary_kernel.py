"""Rotary position embedding of queries and keys in one pass, on a GPU (Triton)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rotate(
    X,
    OUT,
    COS,
    SIN,
    x_row,
    x_head,
    x_place,
    c_row,
    c_place,
    places,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token: pairs (x_i, x_{i + D/2}) are turned by the angle whose cosine is given."""
    token = tl.program_id(0).to(tl.int64)
    row, place = token // places, token % places
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    i = tl.arange(0, WIDTH)
    kept = (head < HEADS)[:, None] & (i < HALF)[None, :]
    angle = row * c_row + place * c_place + i
    x = X + row * x_row + place * x_place + head[:, None] * x_head + i[None, :]
    first = tl.load(x, mask=kept, other=0.0).to(tl.float32)
    second = tl.load(x + HALF, mask=kept, other=0.0).to(tl.float32)
    cos1 = tl.load(COS + angle, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
    sin1 = tl.load(SIN + angle, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(COS + angle + HALF, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(SIN + angle + HALF, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
    out = OUT + (token * HEADS + head[:, None]) * 2 * HALF + i[None, :]
    tl.store(out, (first * cos1 - second * sin1).to(OUT.dtype.element_ty), mask=kept)
    tl.store(out + HALF, (second * cos2 + first * sin2).to(OUT.dtype.element_ty), mask=kept)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x cos + rotate_half(x) sin, computed in float32 and returned in the type of x.

    The result lies token by token in memory, as attention's result then does too: no copy is needed
    before the next product.

    Args:
        x: [B, heads, S, D].
        cos, sin: [B or 1, S, D].
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    rows, heads, places, width = x.shape
    out = torch.empty(rows, places, heads, width, dtype=x.dtype, device=x.device).transpose(1, 2)
    block = min(16, triton.next_power_of_2(heads))
    _rotate[(rows * places, triton.cdiv(heads, block))](
        x,
        out,
        cos,
        sin,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        cos.stride(0) if cos.shape[0] > 1 else 0,
        cos.stride(1),
        places,
        HEADS=heads,
        HALF=width // 2,
        WIDTH=triton.next_power_of_2(width // 2),
        BLOCK=block,
        num_warps=4,
    )
    return out


def apply_rotary_pos_emb(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """In the place of the function of this name in transformers' model files.

    Raises:
        ValueError: a layout other than [B, heads, S, D].
    """
    if unsqueeze_dim != 1 or q.shape[-1] != cos.shape[-1]:
        raise ValueError("only [B, heads, S, D], with angles for the whole width, is known here")
    cos, sin = cos.contiguous(), sin.contiguous()
    return rotate(q, cos, sin), rotate(k, cos, sin)
