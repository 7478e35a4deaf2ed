"""What scoring needs of each row of logits, read once, on a GPU (Triton)."""
# Triton traces these functions: annotations and plain Python would break them
# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _totals(LOGITS, TOTAL, BEST, stride, V, BLOCK: tl.constexpr):
    """One row: a running maximum, and the sum of exponentials relative to it (Milakov &
    Gimelshein, 2018, arXiv 1805.02867), kept apart for each lane until the end.
    """
    row = tl.program_id(0).to(tl.int64)
    logits = LOGITS + row * stride
    v = tl.arange(0, BLOCK)
    largest = tl.full((), float("-inf"), tl.float32)
    best = tl.zeros((), tl.int32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        x = tl.load(logits + start + v, mask=start + v < V, other=float("-inf")).to(tl.float32)
        own = tl.max(x, 0)
        if own > largest:  # seldom: of equal logits the first one counts
            total = total * tl.exp(largest - own)
            best = start + tl.argmax(x, 0).to(tl.int32)
            largest = own
        # Where all so far are -inf the difference would not be a number
        total += tl.exp(x - tl.where(largest == float("-inf"), 0.0, largest))
    tl.store(TOTAL + row, largest + tl.log(tl.sum(total, 0)))
    tl.store(BEST + row, best.to(tl.int64))


def totals(logits_PV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the summed exponentials, float32, and the first of the largest logits: [P] each.

    Of a row that holds a NaN or an infinity the first is no finite number, and the second any
    token.
    """
    if logits_PV.stride(1) != 1:
        logits_PV = logits_PV.contiguous()
    rows, vocabulary = logits_PV.shape
    total_P = torch.empty(rows, dtype=torch.float32, device=logits_PV.device)
    best_P = torch.empty(rows, dtype=torch.int64, device=logits_PV.device)
    if rows:
        _totals[(rows,)](
            logits_PV, total_P, best_P, logits_PV.stride(0), vocabulary, BLOCK=4096, num_warps=8
        )
    return total_P, best_P
