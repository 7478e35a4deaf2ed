"""A cache with a fixed slot for each row, and attention that reads each row's own length of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache

NAME = "paretune_slots"


@dataclass
class Filling:
    """Where the keys and values of prompts go: rows of the cache, and the prompt of each.

    Attributes:
        block: first row and samples of each prompt, where the rows are one block of equal shares: a
            plain copy is several times faster than one with an index.
    """

    rows_R: torch.Tensor
    source_R: torch.Tensor
    block: tuple[int, int] | None

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device) -> Filling:
        """For each prompt, the rows that go on from it."""
        flat = [row for own in rows for row in own]
        source = [prompt for prompt, own in enumerate(rows) for _ in own]
        alike = len({len(own) for own in rows}) == 1
        block = None
        if alike and flat == list(range(flat[0], flat[0] + len(flat))):
            block = (flat[0], len(rows[0]))
        return cls(torch.tensor(flat, device=device), torch.tensor(source, device=device), block)

    def copy(self, states: torch.Tensor, slots: torch.Tensor) -> None:
        """States [N, heads, S, D] of prompts into their slots [R, heads, at least S, D]."""
        stop = states.shape[2]
        if self.block is None:
            slots[self.rows_R, :, :stop] = states.to(slots.dtype)[self.source_R]
            return
        first, samples = self.block
        own = slots[first : first + samples * len(states), :, :stop]
        own.view(len(states), samples, *own.shape[1:]).copy_(states[:, None])


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of R rows, [R, heads, S, D] a layer, allocated once.

    Attributes:
        length_R: int32; tokens that each row holds, below 0 where a slot is idle.
        filling: set while prompts go through the model, None while single tokens do.
        unread: layers whose keys were given and that :func:`attend` has not computed.
    """

    def __init__(self, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layers=[])
        self.rows, self.length = rows, length
        self.dtype = dtype
        self.length_R = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self.filling: Filling | None = None
        self.unread = 0
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._layer = 0

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a prompt's keys and values; those of a single token are kept by the attention."""
        self._layer = layer_idx
        self.unread += 1
        if layer_idx not in self._keys:
            for store, states in ((self._keys, key_states), (self._values, value_states)):
                heads, width = states.shape[1], states.shape[3]
                store[layer_idx] = torch.zeros(
                    self.rows, heads, self.length, width, dtype=self.dtype, device=states.device
                )
        if self.filling is not None:
            self.filling.copy(key_states, self._keys[layer_idx])
            self.filling.copy(value_states, self._values[layer_idx])
        return key_states, value_states

    def current(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the layer that was updated last."""
        return self._keys[self._layer], self._values[self._layer]

    @property
    def token_bytes(self) -> int:
        """Bytes that one token of one row takes in all layers; known once a prompt has run."""
        stores = [*self._keys.values(), *self._values.values()]
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in stores)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Models that ask are given positions; there is no one length."""
        return 0


class Unsupported(Exception):
    """This model's attention is more than the slots' attention computes."""


# The cache whose model runs right now: an attention function is given nothing of the caller's
_running: list[SlotCache] = []


class running:  # noqa: N801
    """Context in which attention reads and writes ``cache``."""

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache

    def __enter__(self) -> None:
        _running.append(self._cache)

    def __exit__(self, *_: object) -> None:
        _running.pop()


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function over the running :class:`SlotCache`.

    Prompts attend causally among themselves, padded on the right. A single token [R, heads, 1, D]
    attends to its row's slot and to itself, and is added to the slot.
    """
    cache = _running[-1]
    cache.unread -= 1
    window = kwargs.get("sliding_window") or cache.length
    if window < cache.length or kwargs.get("softcap") or kwargs.get("s_aux") is not None:
        raise Unsupported("attention with a window, a cap or sinks")
    query, key, value = (states.to(cache.dtype) for states in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if cache.filling is not None:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=key.shape[1] < query.shape[1]
        )
        return out.transpose(1, 2).contiguous(), None
    keys, values = cache.current()
    decode = _decode_function(query.device)
    return decode(query, key, value, keys, values, cache.length_R, scale).transpose(1, 2), None


def _decode_function(device: torch.device) -> Callable[..., torch.Tensor]:
    if device.type == "cuda":
        from paretune.model.slots.attention_kernel import attend_to_slots

        return cast("Callable[..., torch.Tensor]", attend_to_slots)
    return attend_to_slots_plainly


def attend_to_slots_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    length_R: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same in plain torch, on any device: [R, heads, 1, D].

    Args:
        query, key, value: of the new token, [R, heads, 1, D]; fewer heads of keys than of queries
            serve neighbouring queries in equal shares.
        keys, values: the slots [R, heads, S, D]; the new token is written to them.
        length_R: tokens in each slot before the new one; below 0 nothing is written.
    """
    live = (length_R >= 0).nonzero().squeeze(1)
    at = length_R[live].long()
    keys[live, :, at] = key[live, :, 0]
    values[live, :, at] = value[live, :, 0]
    longest = int(length_R.max()) + 1 if len(live) else 1
    place_S = torch.arange(longest, device=length_R.device)
    # An idle slot may read its first entry: its row is ignored, and no row of the softmax is empty
    seen_RS = place_S <= length_R.clamp(min=0)[:, None]
    return F.scaled_dot_product_attention(
        query,
        keys[:, :, :longest],
        values[:, :, :longest],
        attn_mask=seen_RS[:, None, None],
        scale=scale,
        enable_gqa=keys.shape[1] < query.shape[1],
    )


AttentionInterface.register(NAME, attend)
