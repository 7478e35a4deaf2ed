"""Stretches of held-out documents on which bits per byte is scored, with their exact bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.data.choose import spread
from paretune.data.rows import Document
from paretune.data.tokens import encode_with_bytes, end_of_text


@dataclass(frozen=True)
class Window:
    """T tokens to predict after one token of context.

    Attributes:
        tokens: [T + 1] int64; the first is context only: the end-of-text token where the document
            starts, else the token before.
        n_bytes: UTF-8 bytes that ``tokens[1:]`` spell; over all windows of a document they sum to
            the document's.
    """

    id: str
    group: str
    tokens: np.ndarray
    n_bytes: int


def windows(
    documents: Iterable[Document], tokenizer: Any, *, length: int, count: int, seed: int
) -> list[Window]:
    """At most ``count`` windows of ``length`` predicted tokens, sorted by group and id.

    The seed chooses them, in turn from each group. A document's last window may be shorter; those
    below a quarter of ``length`` are taken only where there are not enough others.
    """
    every = [window for document in documents for window in cut(document, tokenizer, length=length)]
    long = [window for window in every if len(window.tokens) - 1 >= length // 4]
    chosen = spread(long, _label, count=count, seed=seed)
    if len(chosen) < count:
        short = [window for window in every if len(window.tokens) - 1 < length // 4]
        chosen += spread(short, _label, count=count - len(chosen), seed=seed)
    return sorted(chosen, key=_label)


def cut(document: Document, tokenizer: Any, *, length: int) -> list[Window]:
    """All windows of one document, end to end."""
    ids, n_bytes, _ = encode_with_bytes(tokenizer, document.text)
    with_context = np.concatenate([[end_of_text(tokenizer)], ids])
    return [
        Window(
            id=f"{document.id}@{start:07d}",
            group=document.group,
            tokens=with_context[start : start + length + 1].copy(),
            n_bytes=int(n_bytes[start : start + length].sum()),
        )
        for start in range(0, len(ids), length)
    ]


def _label(window: Window) -> tuple[str, str]:
    return window.group, window.id
