"""Held-out prompt-response pairs as tokens, to score the response or to generate one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.data.choose import spread
from paretune.data.rows import Pair
from paretune.data.template import encode_pairs
from paretune.errors import UserError


@dataclass(frozen=True)
class PairItem:
    """A prompt to answer.

    Attributes:
        prompt: [P] int64, up to where the answer starts.
        response: [R] int64, ending in the end-of-text token.
        response_text: the response as given, without what a template puts around it.
        n_bytes: UTF-8 bytes of ``response_text``.
    """

    id: str
    group: str
    prompt: np.ndarray
    response: np.ndarray
    response_text: str
    n_bytes: int


def pair_items(
    pairs: Sequence[Pair], tokenizer: Any, template: str, *, count: int, seed: int, max_length: int
) -> list[PairItem]:
    """At most ``count`` pairs that fit ``max_length`` tokens, sorted by group and id.

    The seed chooses them, in turn from each group.

    Raises:
        UserError: none of them fits.
    """
    encoded = encode_pairs(pairs, tokenizer, template)
    fitting = [
        PairItem(
            id=pair.id,
            group=pair.group,
            prompt=np.array(prompt, dtype=np.int64),
            response=np.array(response, dtype=np.int64),
            response_text=pair.response,
            n_bytes=len(pair.response.encode()),
        )
        for pair, (prompt, response) in zip(pairs, encoded, strict=True)
        if len(prompt) + len(response) <= max_length
    ]
    if not fitting:
        raise UserError(
            f"target.heldout: no pair fits training.block_length ({max_length} tokens): raise it"
        )
    chosen = spread(fitting, lambda item: (item.group, item.id), count=count, seed=seed)
    return sorted(chosen, key=lambda item: (item.group, item.id))
