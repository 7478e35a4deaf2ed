"""Decoding with the model's own cache, batch by batch: any causal LM, on any device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from paretune.evaluate.decode.draw import BROKEN, Draws, entropies, next_tokens
from paretune.evaluate.decode.request import GenerationRequest
from paretune.evaluate.decode.stops import Growing
from paretune.evaluate.items import ArmModel


class Unit(NamedTuple):
    """Some samples of one request, for every arm."""

    request: int
    samples: range


def units(requests: Sequence[GenerationRequest], positions: int) -> Iterator[list[Unit]]:
    """Batches of at most ``positions`` tokens an arm, padding counted; longest requests first."""
    order = sorted(range(len(requests)), key=lambda index: (-requests[index].longest, index))
    batch: list[Unit] = []
    room = 0
    for index in order:
        todo = range(requests[index].samples)
        while todo:
            if room < 1:
                if batch:
                    yield batch
                # The first request of a batch is its longest
                batch, room = [], max(1, positions // requests[index].longest)
            batch.append(Unit(index, todo[:room]))
            room -= len(batch[-1].samples)
            todo = todo[len(batch[-1].samples) :]
    if batch:
        yield batch


@torch.no_grad()
def decode(
    arms: ArmModel,
    requests: Sequence[GenerationRequest],
    batch: Sequence[Unit],
    rows: Sequence[Sequence[Growing]],
    *,
    entropy: bool,
) -> None:
    """Let the answers of one batch grow to their ends.

    Prompts are padded on the left so that all end together; samples of a prompt copy its cache.
    When half of the rows are finished, the others go on without them.

    Args:
        rows: [K][rows of an arm], in the order of the batch's units and their samples.
    """
    K = arms.count
    asked = [requests[unit.request] for unit in batch]
    inputs_KBS, mask_KBS = _left_padded(asked, arms)
    # Not every model takes positions and a mask: they are given only where a row is padded
    padded = not bool(mask_KBS.all())
    positions_KBS = (mask_KBS.cumsum(-1) - 1).clamp(min=0)
    source = [row for row, unit in enumerate(batch) for _ in unit.samples]
    asked_rows = [(requests[unit.request], sample) for unit in batch for sample in unit.samples]
    draws = Draws.of(asked_rows * K, arms.device)
    live = list(range(len(source)))  # rows of an arm that still run in some arm
    past: Any = None
    for position in range(max(request.max_new_tokens for request in asked)):
        logits, past = arms.step(
            inputs_KBS,
            past=past,
            attention_mask_KBS=mask_KBS if padded else None,
            position_ids_KBS=positions_KBS if padded else None,
        )
        last_KBV = logits[:, :, -1]
        if position == 0 and len(source) > len(batch):
            last_KBV, mask_KBS, positions_KBS = _select(
                source, past, last_KBV, mask_KBS, positions_KBS
            )
        running = [[of_arm[index] for index in live] for of_arm in rows]
        tokens_KB, ended = _grow(last_KBV, draws, position, running, entropy)
        if ended.all():
            return
        mask_KBS = torch.cat([mask_KBS, torch.ones_like(mask_KBS[:, :, :1])], dim=-1)
        positions_KBS = positions_KBS[:, :, -1:] + 1
        left = np.flatnonzero(~ended.all(0)).tolist()
        if len(left) <= len(live) // 2:
            tokens_KB, mask_KBS, positions_KBS = _select(
                left, past, tokens_KB, mask_KBS, positions_KBS
            )
            draws = draws and draws.of_rows(K, left)
            live = [live[index] for index in left]
        inputs_KBS = tokens_KB[:, :, None]


def _left_padded(
    asked: Sequence[GenerationRequest], arms: ArmModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and their mask [K, B, S]."""
    width = max(len(request.prompt) for request in asked)
    tokens = np.zeros((len(asked), width), dtype=np.int64)  # what is masked may be any token
    mask = np.zeros((len(asked), width), dtype=np.int64)
    for row, request in enumerate(asked):
        tokens[row, width - len(request.prompt) :] = request.prompt
        mask[row, width - len(request.prompt) :] = 1
    shape = (arms.count, len(asked), width)
    tokens_KBS = torch.from_numpy(tokens).to(arms.device).expand(shape)
    return tokens_KBS, torch.from_numpy(mask).to(arms.device).expand(shape)


def _grow(
    logits_KBV: torch.Tensor,
    draws: Draws | None,
    position: int,
    rows: Sequence[Sequence[Growing]],
    entropy: bool,
) -> tuple[torch.Tensor, np.ndarray[Any, np.dtype[np.bool_]]]:
    """The next token of every row, and which rows have ended; both [K, B]."""
    K, B, _ = logits_KBV.shape
    flat_RV = logits_KBV.flatten(0, 1)
    place_R = torch.full((K * B,), position, dtype=torch.int32, device=flat_RV.device)
    token_R, finite_R = next_tokens(flat_RV, draws, place_R)
    tokens = token_R.where(finite_R, BROKEN)[:, None].tolist()
    spread = entropies(flat_RV)[:, None].tolist() if entropy else [None] * (K * B)
    flat = (row for of_arm in rows for row in of_arm)
    ended = [row.extend(*new) for row, *new in zip(flat, tokens, spread, strict=True)]
    return token_R.view(K, B), np.array(ended).reshape(K, B)


def _select(rows: Sequence[int], past: Any, *tensors_KB: torch.Tensor) -> list[torch.Tensor]:
    """The given rows of every arm, in the cache and in tensors [K, B, ...]."""
    K, B = tensors_KB[0].shape[:2]
    index = torch.tensor(rows, device=tensors_KB[0].device)
    arm_major = (torch.arange(K, device=index.device)[:, None] * B + index).flatten()
    past.reorder_cache(arm_major)
    return [tensor.index_select(1, index) for tensor in tensors_KB]
