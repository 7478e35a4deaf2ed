"""Attention over rows that are packed as trees, on a GPU (Triton).

The trees of multiple-choice questions are some hundred tokens wide, so what a block of queries sees
is little more than the blocks around it. Heads that share their keys and values stand together in
one tile of queries, which makes its stretch of tokens, and so the keys that it passes over, short.
"""
# Triton traces these functions: annotations and plain Python would break them
# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl

from paretune.model.tree import wide


@triton.jit
def _attend(
    Q, K, V, OUT, ENDS, COUNTS, BLOCKS, scale, most,
    q_row, q_head, q_place, k_row, k_head, k_place, v_row, v_head, v_place,
    out_row, out_place,
    GROUP: tl.constexpr, WIDE: tl.constexpr, SIZE: tl.constexpr,
    TOKENS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of queries: the blocks of keys that it sees, with a running softmax (Dao et al.,
    2022, arXiv 2205.14135) in powers of two.
    """
    tile, shared, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    member = tl.arange(0, TOKENS * WIDE)
    place = tile * TOKENS + member // WIDE
    own = member % WIDE < GROUP  # a group of three has a place for four
    head = shared * GROUP + tl.minimum(member % WIDE, GROUP - 1)
    d = tl.arange(0, SIZE)
    at = row * q_row + head * q_head + place.to(tl.int64) * q_place
    query = tl.load(Q + at[:, None] + d[None, :])
    keys, values = K + row * k_row + shared * k_head, V + row * v_row + shared * v_head
    largest = tl.full((TOKENS * WIDE,), float("-inf"), tl.float32)
    total = tl.zeros((TOKENS * WIDE,), tl.float32)
    out = tl.zeros((TOKENS * WIDE, SIZE), tl.float32)
    for number in range(0, tl.load(COUNTS + tile)):
        seen = tl.load(BLOCKS + tile * most + number) * KEYS + tl.arange(0, KEYS)
        offset = seen.to(tl.int64)
        key = tl.load(keys + offset[None, :] * k_place + d[:, None])
        score = tl.dot(query, key) * scale
        ends = tl.load(ENDS + seen)
        visible = (seen[None, :] <= place[:, None]) & (place[:, None] < ends[None, :])
        score = tl.where(visible, score, float("-inf"))
        now = tl.maximum(largest, tl.max(score, 1))
        # Where nothing was seen so far the difference would not be a number
        finite = tl.where(now == float("-inf"), 0.0, now)
        weight = tl.exp2(score - finite[:, None])
        shrink = tl.exp2(largest - finite)
        total = total * shrink + tl.sum(weight, 1)
        value = tl.load(values + offset[:, None] * v_place + d[None, :])
        out = out * shrink[:, None] + tl.dot(weight.to(value.dtype), value)
        largest = now
    out = out / total[:, None]
    at = row * out_row + place.to(tl.int64) * out_place + head * SIZE
    tl.store(OUT + at[:, None] + d[None, :], out.to(OUT.dtype.element_ty), mask=own[:, None])


def attend(
    query_BHSd: torch.Tensor,
    key_BHSd: torch.Tensor,
    value_BHSd: torch.Tensor,
    ends_S: torch.Tensor,
    counts_T: torch.Tensor,
    blocks_TB: torch.Tensor,
    scale: float,
    num_warps: int = 4,
    num_stages: int = 3,
) -> torch.Tensor:
    """Attention [B, S, H, d] in which each token sees itself and its ancestors.

    Args:
        key_BHSd: heads of keys and values may be shared by several of the queries'.
        ends_S: int32, as of :class:`paretune.model.tree.TreeRow`.
        counts_T: int32, how many blocks of keys each of T equal stretches of queries sees.
        blocks_TB: int32, which ones they are, first.
        scale: of the products, before the softmax.
    """
    query, key, value = (
        each if each.stride(3) == 1 else each.contiguous()
        for each in (query_BHSd, key_BHSd, value_BHSd)
    )
    B, H, S, size = query.shape
    group = H // key.shape[1]
    tiles, most = blocks_TB.shape
    out = torch.empty(B, S, H, size, dtype=query.dtype, device=query.device)
    _attend[(tiles, key.shape[1], B)](
        query, key, value, out, ends_S, counts_T, blocks_TB, scale * 1.4426950408889634, most,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:2],
        GROUP=group, WIDE=wide(group), SIZE=size, TOKENS=S // tiles, KEYS=S // most,
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return out
