"""Attention that keeps several texts in one row apart, and is fast at fixed shapes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

# Fastest first, as measured on Hopper; each is asked whether it can
_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


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


def segment_bounds(segments_BS: torch.Tensor, capacity: int) -> torch.Tensor:
    """Where segments begin in the rows laid end to end, int32 [capacity + 1], the end repeated.

    Args:
        capacity: segments there is room for, padding counted; the same for all batches of a run,
            so that shapes stay fixed.
    """
    starts = torch.ones_like(segments_BS, dtype=torch.bool)
    starts[:, 1:] = segments_BS[:, 1:] != segments_BS[:, :-1]
    found = starts.flatten().nonzero().squeeze(1)
    bounds = torch.full((capacity + 1,), segments_BS.numel(), dtype=torch.int32)
    bounds[: len(found)] = found.to(torch.int32)
    return bounds


def attend(
    module: Any,
    query_BHSd: torch.Tensor,
    key_BHSd: torch.Tensor,
    value_BHSd: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention over whole rows, or within the segments that ``cu_seq_lens_q`` bounds.

    For transformers' AttentionInterface. No mask is made or read: segments and windows go to the
    kernel of variable lengths, whose cost is that of the segments.
    """
    length = query_BHSd.shape[2]
    grouped = query_BHSd.shape[1] != key_BHSd.shape[1]
    windowed = sliding_window is not None and sliding_window < length
    if cu_seq_lens_q is None and not windowed:
        out = F.scaled_dot_product_attention(
            query_BHSd,
            key_BHSd,
            value_BHSd,
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        return out.transpose(1, 2).contiguous(), None
    B = query_BHSd.shape[0]
    if cu_seq_lens_q is None:
        cu_seq_lens_q = length * torch.arange(B + 1, dtype=torch.int32, device=query_BHSd.device)
    query, key, value = (
        states.transpose(1, 2).reshape(B * length, states.shape[1], -1)
        for states in (query_BHSd, key_BHSd, value_BHSd)
    )
    window = sliding_window - 1 if windowed and sliding_window is not None else -1
    out = _variable_length(query, key, value, cu_seq_lens_q, length, scaling, window)
    return out.view(B, length, *out.shape[1:]), None


def _variable_length(
    query_THd: torch.Tensor,
    key_THd: torch.Tensor,
    value_THd: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int,
) -> torch.Tensor:
    if query_THd.is_cuda:
        from torch.nn.attention import varlen

        varlen_attn: Any = varlen.varlen_attn
        # Early versions take grouped heads without being told
        asked = "enable_gqa" in inspect.signature(varlen_attn).parameters
        grouped = {"enable_gqa": True} if asked else {}
        out: torch.Tensor = varlen_attn(
            query_THd,
            key_THd,
            value_THd,
            bounds,
            bounds,
            longest,
            longest,
            scale=scaling,
            window_size=(window, 0),
            **grouped,
        )
        return out
    place = torch.arange(query_THd.shape[0], device=query_THd.device)
    segment = torch.searchsorted(bounds, place.to(bounds.dtype), right=True)
    distance = place[:, None] - place[None, :]
    mask = (segment[:, None] == segment[None, :]) & (distance >= 0)
    if window >= 0:
        mask = mask & (distance <= window)
    out = F.scaled_dot_product_attention(
        query_THd.transpose(0, 1)[None],
        key_THd.transpose(0, 1)[None],
        value_THd.transpose(0, 1)[None],
        attn_mask=mask,
        scale=scaling,
        enable_gqa=query_THd.shape[1] != key_THd.shape[1],
    )
    return out[0].transpose(0, 1).contiguous()


ROWS = "paretune_rows"
_PROBE = "paretune_probe"
_seen: list[bool] = []


def _probe(*arguments: Any, **settings: Any) -> tuple[torch.Tensor, None]:
    _seen.append(True)
    return attend(*arguments, **settings)


AttentionInterface.register(ROWS, attend)
AttentionInterface.register(_PROBE, _probe)


@contextmanager
def attending(model: Any, name: str = ROWS) -> Iterator[None]:
    """Let a model's attention be :func:`attend` within, on the fastest kernels there are."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        with sdpa_kernel(_KERNELS, set_priority=True):
            yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def can_attend(model: Any, device: torch.device, arms: int = 1) -> bool:
    """Whether :func:`attend` computes this model's attention; found by trying a few tokens.

    Models with caps, sinks or biases of their own, or attention that cannot be replaced, do not
    give the same hidden states. Whole rows and rows of several segments are tried.
    """
    ids = torch.arange(8, device=device).view(2, 4).repeat(arms, 1)
    segments = torch.tensor([[1, 1, 2, 2], [1, 1, 1, 0]]).repeat(arms, 1)
    positions = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 0]], device=device).repeat(arms, 1)
    bounds = segment_bounds(segments, 6 * arms).to(device)
    mask = block_diagonal(segments.to(device), model)
    settings: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    _seen.clear()
    try:
        whole = model.base_model(**settings)[0]
        settings["position_ids"] = positions
        apart = model.base_model(**settings, attention_mask=mask)[0]
        with attending(model, _PROBE):
            got_apart = model.base_model(**settings, cu_seq_lens_q=bounds)[0]
            del settings["position_ids"]
            got_whole = model.base_model(**settings)[0]
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return False
    exact = next(model.parameters()).dtype == torch.float32
    # Autocast rounds to bf16 whatever the weights are
    exact = exact and not torch.is_autocast_enabled(device.type)
    tolerance = 1e-4 if exact else 3e-2
    pairs = ((got_whole, whole), (got_apart, apart))
    near = [(a.float() - b.float()).norm() <= tolerance * b.float().norm() for a, b in pairs]
    return bool(_seen) and all(map(bool, near))
