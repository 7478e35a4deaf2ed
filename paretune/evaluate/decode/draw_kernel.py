"""Drawing a token from each row of logits in one kernel, on a GPU (Triton).

The same draws as ``draw.next_tokens``: the same hash, the same race, the same nucleus.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Each pass over a row narrows the threshold of its nucleus to one part in 16
PARTS, PASSES = 16, 7
# Scaled logits this far below the largest hold nothing
LOWEST = -50.0


@triton.jit
def _mix(x):
    """The lowbias32 hash, as in ``model.dropout.mix``."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _draw(
    LOGITS,
    BEST,
    LARGEST,
    TEMPERATURE,
    TOP_P,
    KEY,
    POSITION,
    TOKEN,
    stride,
    V,
    LOWEST: tl.constexpr,
    PARTS: tl.constexpr,
    PASSES: tl.constexpr,
    CUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    best = tl.load(BEST + row)
    temperature = tl.load(TEMPERATURE + row)
    if temperature == 0:
        tl.store(TOKEN + row, best)
        return
    largest = tl.load(LARGEST + row)
    logits = LOGITS + row * stride
    v = tl.arange(0, BLOCK)
    low = LOWEST + tl.zeros((), tl.float32)
    if CUTS:
        top_p = tl.load(TOP_P + row)
        if top_p < 1:
            total = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, V, BLOCK):
                x = tl.load(logits + start + v, mask=start + v < V, other=float("-inf"))
                total += tl.exp((x - largest) / temperature)
            wanted = tl.sum(total, 0) * top_p
            high = low * 0.0 + 1.0
            part = tl.arange(0, PARTS)
            # Always: the tokens at or above low hold what is wanted, those at or above high do not
            for _ in range(PASSES):
                bound = low + (high - low) * (part + 1).to(tl.float32) / PARTS
                held = tl.zeros((PARTS,), tl.float32)
                for start in range(0, V, BLOCK):
                    x = tl.load(logits + start + v, mask=start + v < V, other=float("-inf"))
                    z = (x - largest) / temperature
                    inside = z[None, :] >= bound[:, None]
                    held += tl.sum(tl.where(inside, tl.exp(z)[None, :], 0.0), 1)
                enough = held >= wanted
                step = (high - low) / PARTS
                low = low + step * tl.sum(enough.to(tl.float32), 0)
                high = low + step
    place = _mix(
        tl.load(KEY + row).to(tl.uint32, bitcast=True)
        ^ _mix((tl.load(POSITION + row) * 31 + 1).to(tl.uint32, bitcast=True))
    )
    ahead = tl.full((BLOCK,), -1.0, tl.float32)
    leader = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, V, BLOCK):
        token = start + v
        x = tl.load(logits + token, mask=token < V, other=float("-inf"))
        z = (x - largest) / temperature
        bits = _mix(_mix((token * 31 + 1).to(tl.uint32)) ^ place)
        uniform = ((bits >> 8).to(tl.float32) + 0.5) * (1.0 / 16777216)
        race = tl.where(z >= low, tl.exp(z) / -tl.log(uniform), -1.0)
        leader = tl.where(race > ahead, token, leader)
        ahead = tl.maximum(ahead, race)
    first = tl.argmax(ahead, 0)
    tl.store(TOKEN + row, tl.sum(tl.where(v == first, leader, 0), 0).to(tl.int64))


def drawn_tokens(
    logits_RV: torch.Tensor,
    best_R: torch.Tensor,
    largest_R: torch.Tensor,
    temperature_R: torch.Tensor,
    top_p_R: torch.Tensor,
    key_R: torch.Tensor,
    position_R: torch.Tensor,
    *,
    cuts: bool,
) -> torch.Tensor:
    """Tokens [R]: the likeliest where the temperature is 0, else drawn.

    Args:
        best_R, largest_R: place and value of each row's largest logit.
        cuts: whether a top_p lies below 1.
    """
    rows, vocabulary = logits_RV.shape
    token_R = torch.empty_like(best_R)
    _draw[(rows,)](
        logits_RV,
        best_R,
        largest_R,
        temperature_R,
        top_p_R,
        key_R,
        position_R,
        token_R,
        logits_RV.stride(0),
        vocabulary,
        LOWEST=LOWEST,
        PARTS=PARTS,
        PASSES=PASSES,
        CUTS=cuts,
        BLOCK=1024,
        num_warps=8,
    )
    return token_R
