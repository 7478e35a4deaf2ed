from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from data_helpers import END, tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paretune.data.rows import Document
from paretune.data.tokens import encode_with_bytes
from paretune.data.windows import cut, windows

TEXTS = {
    "ascii": "The quick brown fox jumps over the lazy dog. " * 9,
    "cjk": "日本語のテキストをいくつかのトークンに分ける。" * 6,
    "emoji": "👩‍🚀🧑🏽‍🎄 naïve café — “quotes”…\n\t👍🏿" * 7,
    "spaces": "  \n\n\n   indented\r\n\t\ttabs   \n" * 8 + "   ",
    "special": f"a text that spells {END} twice {END}",
}


def metaspace() -> Any:
    """A tokenizer as of Llama 2: words marked with ▁, unknown characters as bytes."""
    words = ["▁", "▁the", "▁fox", "e", "o", "x", "t", "h", "▁quick"]
    vocabulary = {
        token: n for n, token in enumerate([END, *(f"<0x{b:02X}>" for b in range(256)), *words])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token=END))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.ByteFallback()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def lossy() -> Any:
    """A tokenizer that lower-cases and drops white space, as of BERT."""
    backend = Tokenizer(models.WordLevel({END: 0, "the": 1, "fox": 2}, unk_token=END))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


@pytest.mark.parametrize("make", [tokenizer, metaspace, lossy])
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("length", [1, 3, 16])
def test_the_bytes_of_a_documents_windows_sum_to_the_documents(
    make: Any, name: str, length: int
) -> None:
    document = Document(name, name, TEXTS[name])
    cuts = cut(document, make(), length=length)
    assert sum(window.n_bytes for window in cuts) == len(TEXTS[name].encode())
    assert all(window.n_bytes >= 0 for window in cuts)


@pytest.mark.parametrize("name", TEXTS)
def test_byte_level_windows_count_the_bytes_they_spell_inside_characters_too(name: str) -> None:
    # Reference: the decoder's own bytes, one window after another.
    document = Document(name, name, TEXTS[name])
    alphabet = {
        character: byte
        for byte, character in zip(
            [*range(33, 127), *range(161, 173), *range(174, 256)],
            [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]],
            strict=True,
        )
    }
    others = [b for b in range(256) if b not in alphabet.values()]
    alphabet |= {chr(256 + n): byte for n, byte in enumerate(others)}
    spelled = b""
    for window in cut(document, tokenizer(), length=5):
        tokens = tokenizer().convert_ids_to_tokens(window.tokens[1:].tolist())
        piece = bytes(alphabet[character] for token in tokens for character in token)
        assert window.n_bytes == len(piece)
        spelled += piece
    assert spelled.decode() == TEXTS[name]


def test_a_window_starts_with_the_token_before_it() -> None:
    document = Document("d", "g", TEXTS["ascii"])
    cuts = cut(document, tokenizer(), length=10)
    ids = tokenizer().encode(TEXTS["ascii"])
    assert cuts[0].tokens[0] == tokenizer().eos_token_id
    assert [int(window.tokens[0]) for window in cuts[1:]] == ids[9:-1:10][: len(cuts) - 1]
    assert np.concatenate([window.tokens[1:] for window in cuts]).tolist() == ids
    assert all(window.tokens.dtype == np.int64 for window in cuts)


def test_a_special_token_spelled_in_a_text_is_only_text() -> None:
    ids, n_bytes, _ = encode_with_bytes(tokenizer(), TEXTS["special"])
    assert tokenizer().eos_token_id not in ids
    assert n_bytes.sum() == len(TEXTS["special"])


def books(sizes: dict[str, int]) -> list[Document]:
    return [
        Document(f"{group}/{n}", group, f"Chapter {n} of {group}. " * 30)
        for group, count in sizes.items()
        for n in range(count)
    ]


def test_windows_are_spread_over_groups_and_sorted() -> None:
    chosen = windows(books({"a": 50, "b": 2, "c": 2}), tokenizer(), length=32, count=12, seed=1)
    assert Counter(window.group for window in chosen) == {"a": 4, "b": 4, "c": 4}
    assert [(w.group, w.id) for w in chosen] == sorted((w.group, w.id) for w in chosen)


def test_the_seed_alone_chooses_windows() -> None:
    documents = books({"a": 9, "b": 9})
    first = windows(documents, tokenizer(), length=16, count=8, seed=0)
    again = windows(documents[::-1], tokenizer(), length=16, count=8, seed=0)
    other = windows(documents, tokenizer(), length=16, count=8, seed=1)
    assert [window.id for window in first] == [window.id for window in again]
    assert [window.id for window in first] != [window.id for window in other]


def test_short_windows_are_taken_only_where_there_are_no_others() -> None:
    documents = [Document(f"d{n}", f"d{n}", "The quick brown fox. " * 3 + "x") for n in range(4)]
    total = len(tokenizer().encode(documents[0].text))
    length = total - 1  # one whole window and one of a single token in each document
    assert {
        len(w.tokens) - 1 for w in windows(documents, tokenizer(), length=length, count=4, seed=0)
    } == {length}
    everything = windows(documents, tokenizer(), length=length, count=99, seed=0)
    assert Counter(len(w.tokens) - 1 for w in everything) == {length: 4, 1: 4}
