"""Text to token ids, the same way everywhere, with the bytes that each token spells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from paretune.errors import UserError


def end_of_text(tokenizer: Any) -> int:
    """The id of the token that ends a document or a response.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the base's tokenizer has no end-of-text token (eos_token): documents and responses "
            "cannot be told apart. Set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """Token ids of each text, with nothing added.

    Args:
        special: read the spelling of a special token as that token (for rendered chat templates);
            otherwise a text that happens to hold ``<|endoftext|>`` cannot forge a boundary.
    """
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        split_special_tokens=not special,
        verbose=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def encode_with_bytes(tokenizer: Any, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids of a text, the UTF-8 bytes each spells, and the character each begins at.

    The bytes sum exactly to the text's. A byte-level tokenizer writes each byte as one character
    of its token, which holds inside a split character too; for others the bytes come from the
    offsets, and a token that continues a character counts as none.

    Returns:
        ids, bytes, starts: each int64 of shape [T].
    """
    if not tokenizer.is_fast:
        raise UserError(
            "the base's tokenizer is a slow one, which does not say where its tokens lie"
        )
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        split_special_tokens=True,
        verbose=False,
    )
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    total = len(text.encode())
    if len(ids) == 0:
        return ids, ids.copy(), ids.copy()
    if _byte_level(tokenizer):
        spelled = tokenizer.convert_ids_to_tokens(ids.tolist())
        n_bytes = np.array([len(token) for token in spelled], dtype=np.int64)
        if n_bytes.sum() == total:
            return ids, n_bytes, offsets[:, 0]
    # Byte position of each character boundary; a token ends where the furthest one so far ends, so
    # that white space which a tokenizer drops belongs to the token after it.
    character_bytes = np.array([len(c.encode()) for c in text], dtype=np.int64)
    boundary = np.concatenate([[0], np.cumsum(character_bytes)])
    ends = boundary[np.maximum.accumulate(offsets[:, 1])]
    ends[-1] = total
    return ids, np.diff(ends, prepend=0), offsets[:, 0]


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of what decides how a tokenizer writes text: its rules, vocabulary and template."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.pop("padding", None)  # set by earlier calls, of no consequence here
        rules.pop("truncation", None)
    else:
        rules = tokenizer.get_vocab()
    parts = [rules, tokenizer.eos_token_id, getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _byte_level(tokenizer: Any) -> bool:
    decoder = getattr(tokenizer.backend_tokenizer, "decoder", None)
    return "ByteLevel" in str(decoder)
