"""Log-likelihood of text under K arms at once, and bits per byte from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.data.pairs import PairItem
from paretune.data.windows import Window
from paretune.evaluate.batches import ROW_TOKENS, batches, position_slices, right_padded
from paretune.evaluate.items import ArmModel, Items, outcomes


def windows_bits_per_byte(
    arms: ArmModel, windows: Sequence[Window], metric: str, *, row_tokens: int = ROW_TOKENS
) -> list[Items]:
    """Bits per byte of running text: all tokens of a window but its first, which is context.

    Args:
        metric: the score's name, SET/bits_per_byte.
        row_tokens: length of the rows that ``arms.rows`` counts.

    Returns:
        K outcomes; value is the bits an item takes, weight its UTF-8 bytes.
    """
    nats = negative_log_likelihood(
        arms, [window.tokens for window in windows], [1] * len(windows), row_tokens=row_tokens
    )
    n_bytes = np.array([window.n_bytes for window in windows], dtype=np.float64)
    return outcomes(metric, windows, nats / math.log(2), n_bytes)


def responses_bits_per_byte(
    arms: ArmModel, pairs: Sequence[PairItem], metric: str, *, row_tokens: int = ROW_TOKENS
) -> list[Items]:
    """Bits per byte of responses given their prompts.

    The end-of-text token after a response counts, as in the training loss: knowing where an answer
    ends is part of it. It adds bits but no bytes.

    Returns:
        K outcomes; value is the bits a response takes, weight the UTF-8 bytes of its text.
    """
    rows = [np.concatenate([pair.prompt, pair.response]) for pair in pairs]
    starts = [len(pair.prompt) for pair in pairs]
    nats = negative_log_likelihood(arms, rows, starts, row_tokens=row_tokens)
    n_bytes = np.array([pair.n_bytes for pair in pairs], dtype=np.float64)
    return outcomes(metric, pairs, nats / math.log(2), n_bytes)


@torch.no_grad()
def negative_log_likelihood(
    arms: ArmModel,
    rows: Sequence[NDArray[np.int64]],
    starts: Sequence[int],
    *,
    row_tokens: int = ROW_TOKENS,
) -> NDArray[np.float64]:
    """Nats [K, N] that tokens ``rows[i][starts[i]:]`` take, given all tokens before them.

    Rows are padded on the right and no mask is given: in a causal model what follows a position
    cannot change it, and without a mask the fastest attention kernels apply.

    Raises:
        ValueError: a start below 1, where the first token would have no context.
    """
    if any(start < 1 for start in starts):
        raise ValueError("a row needs at least one token of context before what is scored")
    nats = np.zeros((arms.count, len(rows)))
    for batch in batches([len(row) - 1 for row in rows], arms, row_tokens):
        tokens = right_padded([rows[index] for index in batch])
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        place = torch.arange(1, tokens.shape[1])
        first = torch.tensor([starts[index] for index in batch])[:, None]
        end = torch.tensor([len(rows[index]) for index in batch])[:, None]
        scored = (place >= first) & (place < end)
        logits = arms.logits(inputs.to(arms.device))
        nats[:, batch] = scored_nats(logits, targets, scored).numpy()
    return nats


def scored_nats(
    logits_KBSV: torch.Tensor, targets_BS: torch.Tensor, scored_BS: torch.Tensor
) -> torch.Tensor:
    """Nats [K, B] of the scored targets: float32 log-softmax, summed in float64 on the CPU."""
    K, B, S, V = logits_KBSV.shape
    device = logits_KBSV.device
    everything = bool(scored_BS.all())
    places_M = scored_BS.flatten().nonzero().squeeze(1)
    targets_M = targets_BS.flatten()[places_M].to(device)
    on_device_M = places_M.to(device)
    nats_KM = torch.empty(K, len(places_M), dtype=torch.float32, device=device)
    for arm in range(K):
        logits_PV = logits_KBSV[arm].reshape(B * S, V)
        for part in position_slices(len(places_M), V, device):
            logits_mV = logits_PV[part] if everything else logits_PV[on_device_M[part]]
            nats_KM[arm, part] = torch.nn.functional.cross_entropy(
                logits_mV.float(), targets_M[part], reduction="none"
            )
    nats_KP = torch.zeros(K, B * S, dtype=torch.float64)
    nats_KP[:, places_M] = nats_KM.double().cpu()
    return nats_KP.view(K, B, S).sum(-1)
