"""Attention of one new token a row to its slot of the cache, on a GPU (Triton)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    Q,
    K1,
    V1,
    K,
    V,
    OUT,
    LENGTH,
    scale,
    q_row,
    q_head,
    k1_row,
    k1_head,
    v1_row,
    v1_head,
    slots,
    HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row and one head of keys: SHARE queries read the slot once (Dao, flash decoding)."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(LENGTH + row)
    d = tl.arange(0, WIDTH)
    query = tl.arange(0, QUERIES)
    d_kept = d < D
    q_kept = (query < SHARE)[:, None] & d_kept[None, :]
    out = OUT + (row * HEADS + head) * SHARE * D + query[:, None] * D + d[None, :]
    if length < 0:
        tl.store(out, tl.zeros((QUERIES, WIDTH), OUT.dtype.element_ty), mask=q_kept)
        return
    q = tl.load(
        Q + row * q_row + (head * SHARE + query[:, None]) * q_head + d[None, :],
        mask=q_kept,
        other=0.0,
    )
    k1 = tl.load(K1 + row * k1_row + head * k1_head + d, mask=d_kept, other=0.0)
    v1 = tl.load(V1 + row * v1_row + head * v1_head + d, mask=d_kept, other=0.0)
    slot = (row * HEADS + head) * slots * D
    tl.store(K + slot + length * D + d, k1, mask=d_kept)
    tl.store(V + slot + length * D + d, v1, mask=d_kept)
    # The new token first, from registers: what was just stored need not be visible to a load yet
    top = tl.sum(q.to(tl.float32) * k1.to(tl.float32)[None, :], 1) * scale
    total = tl.full((QUERIES,), 1.0, tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32) + v1.to(tl.float32)[None, :]
    place = tl.arange(0, BLOCK)
    for start in range(0, length, BLOCK):
        at = start + place
        kept = at < length
        inside = kept[:, None] & d_kept[None, :]
        k = tl.load(K + slot + at[:, None] * D + d[None, :], mask=inside, other=0.0)
        v = tl.load(V + slot + at[:, None] * D + d[None, :], mask=inside, other=0.0)
        score = tl.dot(q, tl.trans(k)) * scale
        score = tl.where(kept[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        sums = sums * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
        top = higher
    tl.store(out, (sums / total[:, None]).to(OUT.dtype.element_ty), mask=q_kept)


def attend_to_slots(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    length_R: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """What ``cache.attend_to_slots_plainly`` computes, reading each slot once up to its length."""
    rows, heads, slots, width = keys.shape
    share = query.shape[1] // heads
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    out = torch.empty(rows, heads * share, 1, width, dtype=query.dtype, device=query.device)
    _attend[(rows, heads)](
        query,
        key,
        value,
        keys,
        values,
        out,
        length_R,
        scale * LOG2_E,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        slots,
        HEADS=heads,
        SHARE=share,
        D=width,
        WIDTH=triton.next_power_of_2(width),
        QUERIES=max(16, triton.next_power_of_2(share)),
        BLOCK=64,
        num_warps=4,
        num_stages=3,
    )
    return out
