"""Many sequences in one row as a tree: what they share is there once, and branches part from it.

A row lists the tree's nodes (tokens) in depth-first order, so the subtree of a node is the stretch
of places that follows it. A token sees its ancestors only, and its position is its depth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward

BLOCK = 128  # of FlexAttention, in queries and in keys
# Of our own kernel: rows of a tile of queries and places of a block of keys (the fastest of twelve
# forms at the shapes of Llama-3.2-1B and Llama-2-7B on an H100), and sizes of heads
ROWS, KEYS = 64, 32
SIZES = (16, 32, 64, 128)


@dataclass(frozen=True)
class TreeRow:
    """One packed row, and which of its tokens' continuations are scored.

    Attributes:
        tokens: [S] int64, in depth-first order.
        positions: [S] int64, the depth of each token in its tree.
        ends: [S] int64, the place after the last descendant: place k is an ancestor of place q
            (or q itself) where k <= q < ends[k].
        places: [P] int64, ascending, the places whose next token is asked for.
        asked: [M] int64, index into ``places``.
        targets: [M] int64, the next token asked for there.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    ends: NDArray[np.int64]
    places: NDArray[np.int64]
    asked: NDArray[np.int64]
    targets: NDArray[np.int64]

    def padded(self, length: int) -> TreeRow:
        """The row filled up to ``length`` with tokens that see and concern nobody."""
        own = np.arange(len(self.tokens), length)
        zeros = np.zeros_like(own)
        return replace(
            self,
            tokens=np.concatenate([self.tokens, zeros]),
            positions=np.concatenate([self.positions, zeros]),
            ends=np.concatenate([self.ends, own + 1]),
        )


def dense_mask(ends_S: torch.Tensor, model: Any, dtype: torch.dtype) -> torch.Tensor:
    """Mask [1, 1, S, S] in which each token sees itself and its ancestors.

    SDPA takes a boolean mask whatever the compute type; other implementations add a float one.
    """
    place_S = torch.arange(len(ends_S), device=ends_S.device)
    mask = (place_S <= place_S[:, None]) & (place_S[:, None] < ends_S)
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        floats = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return floats.masked_fill(~mask, torch.finfo(dtype).min)[None, None]
    return mask[None, None]


def block_mask(ends_S: torch.Tensor, *, tile: int | None = None) -> Any:
    """The same mask for FlexAttention, as the blocks of 128 x 128 that hold anything.

    Keys of block j are seen by queries of block i > j where some subtree of j reaches into i, and
    by all of them where every subtree does, so no S x S mask is ever made.

    Args:
        tile: tokens of a tile of our own kernel, which is used where it serves; None: never.
            The mask's ``served`` tells afterwards whether it was, in code that is not compiled.
    """
    from torch.nn.attention.flex_attention import BlockMask

    S = len(ends_S)
    if S % BLOCK:
        raise ValueError(f"a row for FlexAttention is a multiple of {BLOCK} long, not {S}")
    first = torch.arange(0, S, BLOCK, device=ends_S.device)
    before = first[:, None] > first
    full = before & (first[:, None] + BLOCK <= ends_S.view(-1, BLOCK).amin(1))
    partial = _seen(ends_S, BLOCK, BLOCK) & ~full

    def mask_mod(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (key <= query) & (query < ends_S[key])

    mask: Any = BlockMask.from_kv_blocks(
        *_indices(partial),
        *_indices(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        compute_q_blocks=False,  # which only a backward pass reads
    )
    own = None if tile is None else (ends_S.to(torch.int32), *seen_blocks(ends_S, tile, KEYS))
    mask.own, mask.served = own, False
    return mask


def seen_blocks(ends_S: torch.Tensor, tokens: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks of ``keys`` places are seen by any of each T = S / ``tokens`` places.

    Returns:
        How many each stretch sees, int32 [T], and their numbers, ascending, first in [T, S / keys].
    """
    numbers, indices = _indices(_seen(ends_S, tokens, keys))
    return numbers[0, 0], indices[0, 0]


def _seen(ends_S: torch.Tensor, tokens: int, keys: int) -> torch.Tensor:
    """Whether any of a stretch of ``tokens`` places sees any of a block of ``keys``: [T, B]."""
    S = len(ends_S)
    first_T1 = torch.arange(0, S, tokens, device=ends_S.device)[:, None]
    first_B = torch.arange(0, S, keys, device=ends_S.device)
    # A place sees itself, so that of the blocks that overlap a stretch all are there
    return (first_B < first_T1 + tokens) & (first_T1 < ends_S.view(-1, keys).amax(1))


def _indices(wanted_QK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number and indices of the key blocks of each query block, as BlockMask wants them."""
    numbers = wanted_QK.sum(1).to(torch.int32)[None, None]
    order = torch.argsort(wanted_QK.to(torch.int8), dim=1, descending=True, stable=True)
    return numbers, order.to(torch.int32)[None, None]


def tile_tokens(config: Any) -> int:
    """Tokens of a tile of our own kernel, which holds all heads that share their keys."""
    heads = getattr(config, "num_attention_heads", 1)
    group = max(1, heads // (getattr(config, "num_key_value_heads", None) or heads))
    return max(1, ROWS // wide(group))


def wide(group: int) -> int:
    """Rows of a tile that a token takes: a group's heads, up to a power of two."""
    return 1 << (group - 1).bit_length()


@torch.library.custom_op("paretune::attend_in_tree", mutates_args=())
def _attend(
    query_BHSd: torch.Tensor,
    key_BHSd: torch.Tensor,
    value_BHSd: torch.Tensor,
    ends_S: torch.Tensor,
    counts_T: torch.Tensor,
    blocks_TB: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    from paretune.model.tree_kernel import attend

    return attend(query_BHSd, key_BHSd, value_BHSd, ends_S, counts_T, blocks_TB, scale)


@_attend.register_fake
def _(query_BHSd: torch.Tensor, *_: Any) -> torch.Tensor:
    B, H, S, d = query_BHSd.shape
    return query_BHSd.new_empty(B, S, H, d)


def _serves(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: Any) -> bool:
    """Whether our own kernel computes this attention."""
    named = ("softcap", "s_aux", "position_bias")
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] in SIZES
        and key.shape == value.shape
        and key.shape[2:] == query.shape[2:]
        and all(settings.get(name) is None for name in named)
        and not settings.get("dropout")
    )


TREE = "paretune_tree"


def attend_in_tree(
    module: Any,
    query_BHSd: torch.Tensor,
    key_BHSd: torch.Tensor,
    value_BHSd: torch.Tensor,
    attention_mask: Any,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention with a block mask, for transformers' AttentionInterface: our own kernel where the
    mask is made for it and nothing but a softmax is asked for, else FlexAttention.

    Under autocast rotary embeddings leave queries and keys in float32 beside bf16 values, which
    SDPA would cast and FlexAttention refuses.
    """
    query, key = query_BHSd.to(value_BHSd.dtype), key_BHSd.to(value_BHSd.dtype)
    own = getattr(attention_mask, "own", None)
    if own is not None and _serves(query, key, value_BHSd, settings):
        scale = settings.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if not torch.compiler.is_compiling():
            attention_mask.served = True
        return _attend(query, key, value_BHSd, *own, scale), None
    out: tuple[torch.Tensor, torch.Tensor | None] = flex_attention_forward(
        module, query, key, value_BHSd, attention_mask, **settings
    )
    return out


AttentionInterface.register(TREE, attend_in_tree)
