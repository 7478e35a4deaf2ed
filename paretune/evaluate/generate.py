"""Text that K arms write in answer to the same requests, greedy or sampled."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from paretune.evaluate.batches import ROW_TOKENS
from paretune.evaluate.decode import padded, slots
from paretune.evaluate.decode.request import Answer, GenerationRequest
from paretune.evaluate.decode.stops import Growing, Language, LineEnds
from paretune.evaluate.items import ArmModel
from paretune.model.slots.model import SlotModel

LOG = logging.getLogger("paretune")


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
    model = slot_model(arms)
    if model is not None:
        slots.decode(model, requests, growing, language.end_of_text, entropy=entropy)
    else:
        _with_own_cache(arms, requests, growing, entropy, arms.rows * row_tokens)
    return [
        [[row.answer(entropy=entropy) for row in samples] for samples in of_arm]
        for of_arm in growing
    ]


def slot_model(arms: ArmModel) -> SlotModel | None:
    """What decodes these arms in slots; None on a CPU and for models that slots do not know."""
    make = getattr(arms, "slot_model", None)
    if make is None or arms.device.type != "cuda":
        return None
    model: SlotModel | None = make()
    if model is None:
        return None
    reason = model.check(arms.logits)
    if reason is not None:
        LOG.info("decoding with the model's own cache: %s", reason)
        return None
    return model


def _with_own_cache(
    arms: ArmModel,
    requests: Sequence[GenerationRequest],
    growing: Sequence[Sequence[Sequence[Growing]]],
    entropy: bool,
    positions: int,
) -> None:
    for batch in padded.units(requests, positions):
        rows = [
            [of_arm[unit.request][sample] for unit in batch for sample in unit.samples]
            for of_arm in growing
        ]
        padded.decode(arms, requests, batch, rows, entropy=entropy)
