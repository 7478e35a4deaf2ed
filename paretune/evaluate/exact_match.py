"""Exact match: the greedy answer to a prompt against the response it should have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paretune.data.pairs import PairItem
from paretune.evaluate.batches import ROW_TOKENS
from paretune.evaluate.decode.request import Answer, GenerationRequest
from paretune.evaluate.decode.stops import LineEnds
from paretune.evaluate.generate import generate
from paretune.evaluate.items import ArmModel, Items, outcomes


def exact_match(
    arms: ArmModel,
    pairs: Sequence[PairItem],
    tokenizer: Any,
    metric: str,
    *,
    answer_tokens: int,
    line_ends: LineEnds | None = None,
    row_tokens: int = ROW_TOKENS,
) -> list[Items]:
    """Share of prompts whose greedy answer has the response's first line.

    Args:
        answer_tokens: longest answer; it also stops at the end-of-text token and after a line.
        line_ends: of this tokenizer, where they are known already.

    Returns:
        K outcomes; value 1 for a match, else 0, NaN where logits are not numbers; weight 1.
    """
    answers = generate(
        arms,
        [GenerationRequest(pair.prompt, answer_tokens, first_line=True) for pair in pairs],
        tokenizer,
        line_ends=line_ends,
        row_tokens=row_tokens,
    )
    value = np.full((arms.count, len(pairs)), np.nan)
    for arm, of_arm in enumerate(answers):
        for index, ([answer], pair) in enumerate(zip(of_arm, pairs, strict=True)):
            if answer.finish != "broken":
                written = answered_line(answer, tokenizer)
                value[arm, index] = written == first_line(pair.response_text)
    return outcomes(metric, pairs, value, np.ones(len(pairs)))


def answered_line(answer: Answer, tokenizer: Any) -> str:
    """The first line of an answer, with the spaces that its tokens spell."""
    text = tokenizer.decode(
        answer.tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return first_line(text)


def first_line(text: str) -> str:
    """The first line that holds text, stripped of white space; case and digits as they are."""
    return text.strip().split("\n", 1)[0].strip()
