"""Greedy decoding for K arms and many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.evaluate.batches import ROW_TOKENS, batches
from paretune.evaluate.items import ArmModel


@dataclass(frozen=True)
class LineEnds:
    """Which tokens of a vocabulary end a line of text; [V + 1] each, the last for unknown tokens.

    Attributes:
        always: the token holds text and a newline after it.
        after_text: the token holds a newline, which ends a line once there is text before it.
        blank: the token holds nothing but white space.
    """

    always: NDArray[np.bool_]
    after_text: NDArray[np.bool_]
    blank: NDArray[np.bool_]

    @classmethod
    def of(cls, tokenizer: Any) -> LineEnds:
        """The line ends of a tokenizer's vocabulary."""
        texts = tokenizer.batch_decode(
            [[token] for token in range(len(tokenizer))],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        always = ["\n" in text.lstrip() for text in texts]
        after_text = ["\n" in text for text in texts]
        blank = [not text.strip() for text in texts]
        return cls(
            np.array([*always, False]), np.array([*after_text, False]), np.array([*blank, True])
        )


@torch.no_grad()
def greedy(
    arms: ArmModel,
    prompts: Sequence[NDArray[np.int64]],
    *,
    max_new_tokens: int,
    end_of_text: int,
    line_ends: LineEnds | None = None,
    row_tokens: int = ROW_TOKENS,
) -> list[list[NDArray[np.int64] | None]]:
    """The likeliest next token again and again, for every arm and prompt.

    An answer stops before the end-of-text token, with the token that ends its first line of text
    (with ``line_ends``), or at ``max_new_tokens``. Prompts of similar length share a batch.

    Returns:
        K lists of N answers in the order of ``prompts``; None where the arm's logits are not
        numbers.

    Raises:
        ValueError: an empty prompt.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt needs at least one token")
    answers: list[list[NDArray[np.int64] | None]] = [
        [None] * len(prompts) for _ in range(arms.count)
    ]
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    for batch in batches(lengths, arms, row_tokens):
        rows = _Rows(arms.count, len(batch), end_of_text, line_ends)
        _decode(arms, [prompts[index] for index in batch], rows, max_new_tokens)
        for arm in range(arms.count):
            for row, index in enumerate(batch):
                answers[arm][index] = rows.answer(arm, row)
    return answers


def _decode(
    arms: ArmModel, prompts: Sequence[NDArray[np.int64]], rows: _Rows, max_new_tokens: int
) -> None:
    """Decode one batch into ``rows``; prompts are padded on the left so that all end together."""
    K, B = arms.count, len(prompts)
    width = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((B, width), dtype=np.int64)  # what is masked may be any token
    mask = np.zeros((B, width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    inputs_KBS = torch.from_numpy(tokens).to(arms.device).expand(K, B, width)
    # Not every model takes positions and a mask: they are given only where a row is padded
    padded = not mask.all()
    mask_KBS = torch.from_numpy(mask).to(arms.device).expand(K, B, width)
    positions_KBS = (mask_KBS.cumsum(-1) - 1).clamp(min=0)
    past = None
    for _ in range(max_new_tokens):
        logits, past = arms.step(
            inputs_KBS,
            past=past,
            attention_mask_KBS=mask_KBS if padded else None,
            position_ids_KBS=positions_KBS if padded else None,
        )
        best = logits[:, :, -1].float().max(-1)
        rows.add(best.indices.cpu().numpy(), best.values.isfinite().cpu().numpy())
        if rows.finished.all():
            return
        inputs_KBS = best.indices[:, :, None]
        mask_KBS = torch.cat([mask_KBS, torch.ones_like(mask_KBS[:, :, :1])], dim=-1)
        positions_KBS = positions_KBS[:, :, -1:] + 1


class _Rows:
    """The answers of one batch as they grow; [K, B] each."""

    def __init__(self, K: int, B: int, end_of_text: int, line_ends: LineEnds | None) -> None:
        self.end_of_text = end_of_text
        self.finished = np.zeros((K, B), dtype=bool)
        self._broken = np.zeros((K, B), dtype=bool)
        self._has_text = np.zeros((K, B), dtype=bool)
        self._length = np.zeros((K, B), dtype=np.int64)
        self._tokens: list[NDArray[np.int64]] = []
        self._line_ends = line_ends

    def add(self, token_KB: NDArray[np.int64], finite_KB: NDArray[np.bool_]) -> None:
        """Take the next token of every row; rows that are finished ignore theirs."""
        self._broken |= ~finite_KB & ~self.finished
        self.finished |= (token_KB == self.end_of_text) | self._broken
        self._tokens.append(token_KB)
        self._length += ~self.finished
        if self._line_ends is not None:
            known = np.minimum(token_KB, len(self._line_ends.blank) - 1)
            self.finished |= self._line_ends.always[known]
            self.finished |= self._line_ends.after_text[known] & self._has_text
            self._has_text |= ~self._line_ends.blank[known]

    def answer(self, arm: int, row: int) -> NDArray[np.int64] | None:
        """What a row holds, without the end-of-text token; None where its logits broke."""
        if self._broken[arm, row]:
            return None
        taken = [token[arm, row] for token in self._tokens[: self._length[arm, row]]]
        return np.array(taken, dtype=np.int64)
