"""Text that K arms write in answer to the same requests, greedy or sampled."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from paretune.evaluate.batches import ROW_TOKENS
from paretune.evaluate.decode import padded
from paretune.evaluate.decode.request import Answer, GenerationRequest
from paretune.evaluate.decode.stops import Growing, Language, LineEnds
from paretune.evaluate.items import ArmModel


def generate(
    arms: ArmModel,
    requests: Sequence[GenerationRequest],
    tokenizer: Any,
    *,
    end_of_text: Collection[int] | None = None,
    line_ends: LineEnds | None = None,
    entropy: bool = False,
    row_tokens: int = ROW_TOKENS,
) -> list[list[list[Answer]]]:
    """The answers of every arm to every request.

    Args:
        end_of_text: tokens that end any answer; the tokenizer's own by default.
        line_ends: of this tokenizer, where they are known already.
        entropy: keep the entropy of the next-token distribution at every token.
        row_tokens: length of the rows that ``arms.rows`` counts.

    Returns:
        [K][N][samples] answers, requests in the order given.
    """
    language = Language.of(tokenizer, requests, end_of_text, line_ends)
    growing = [
        [[Growing(request, language) for _ in range(request.samples)] for request in requests]
        for _ in range(arms.count)
    ]
    for batch in padded.units(requests, arms.rows * row_tokens):
        rows = [
            [of_arm[unit.request][sample] for unit in batch for sample in unit.samples]
            for of_arm in growing
        ]
        padded.decode(arms, requests, batch, rows, entropy=entropy)
    return [
        [[row.answer(entropy=entropy) for row in samples] for samples in of_arm]
        for of_arm in growing
    ]
