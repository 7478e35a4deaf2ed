"""Dropout masks that are a pure function of arm, step, layer, row and position.

A mask drawn from a generator would depend on what else is drawn beside it: on the cohort, on how a
batch is cut into pieces, on the device. A hash of the element's coordinates depends on none.
"""

from __future__ import annotations

import torch

from paretune.model.compilation import fused_on_gpu

_MASK16 = 0xFFFF
_PRIMES = (0x7FEB352D, 0x846CA68B - (1 << 32))  # lowbias32's multipliers, as signed 32-bit numbers


def mix(x: torch.Tensor) -> torch.Tensor:
    """The lowbias32 integer hash (Wellons, hash-prospector), elementwise on int32."""
    x = x ^ ((x >> 16) & _MASK16)
    x = x * _PRIMES[0]
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _PRIMES[1]
    return x ^ ((x >> 16) & _MASK16)


def key(*parts: int) -> int:
    """A signed 32-bit key from several numbers, such as seed, step and layer."""
    state = 0x9E3779B9
    for part in parts:
        for word in (part & 0xFFFFFFFF, part >> 32):
            state = ((state ^ word) * 0x01000193 + 0x7F4A7C15) & 0xFFFFFFFF
            state ^= state >> 15
    return state - (1 << 32) if state >= 1 << 31 else state


def scaled_masks(
    keys_K: torch.Tensor,
    rate_K: torch.Tensor,
    first: torch.Tensor | int,
    shape_KND: tuple[int, int, int],
) -> torch.Tensor:
    """Masks [K, N, D] holding 0 (dropped) or 1 / (1 - rate): inverted dropout, one rate an arm.

    Args:
        keys_K: int32, one key an arm (from :func:`key`).
        rate_K: float32, dropout rate of each arm.
        first: position of the first of the N vectors in the arm's whole batch, so that a batch
            cut into pieces gets the same mask as an uncut one; a number, or an int32 tensor.
    """
    _, n, d = shape_KND
    device = keys_K.device
    rows = torch.arange(n, dtype=torch.int32, device=device) + first
    columns = torch.arange(d, dtype=torch.int32, device=device)
    index_ND = mix(rows)[:, None] ^ mix(columns * 31 + 1)[None, :]
    bits_KND = mix(mix(index_ND)[None] ^ keys_K[:, None, None])
    # 24 random bits make a float32 in [0, 1) without rounding
    uniform_KND = ((bits_KND >> 8) & 0xFFFFFF).float() * (1.0 / (1 << 24))
    keep_K = 1 - rate_K
    return (uniform_KND >= rate_K[:, None, None]).float() / keep_K[:, None, None]


@fused_on_gpu
def masked(
    x_KND: torch.Tensor, keys_K: torch.Tensor, rate_K: torch.Tensor, first: torch.Tensor
) -> torch.Tensor:
    """``x_KND`` times its dropout masks (:func:`scaled_masks`), in its type."""
    k, n, d = x_KND.shape
    return x_KND * scaled_masks(keys_K, rate_K, first, (k, n, d)).to(x_KND.dtype)
