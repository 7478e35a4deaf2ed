"""Tokens to rows of equal length on disk: documents end to end, pairs first-fit side by side."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from paretune.data.blocks import LOSS_MASK, SEGMENTS, TOKENS
from paretune.data.pieces import pieces
from paretune.data.rows import BadRow, Document, Pair, RowCounts
from paretune.data.template import encode_pairs
from paretune.data.tokens import encode, end_of_text

PIECE = 1_000_000
"""Characters of a text that are tokenised at once; a longer one is cut at a line."""
TEXTS_AT_ONCE, CHARACTERS_AT_ONCE, PAIRS_AT_ONCE = 256, 250_000, 512
OPEN_ROWS = 128
"""Rows that a pair may still be put into; beyond these the fullest is closed."""
_HEADER = 128  # bytes of the .npy header of a small array; its numbers leave room in it

T = TypeVar("T")


class RowWriter:
    """Writes an .npy array [rows, width] row by row, without knowing how many there will be.

    It fills a temporary file beside ``path`` and renames it when it is left without an exception.
    """

    def __init__(self, path: Path, width: int, dtype: Any) -> None:
        self.path, self.width, self.dtype = path, width, np.dtype(dtype)
        self.count = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> RowWriter:
        self._file = self._temporary.open("wb")
        self._file.write(bytes(_HEADER))
        return self

    def write(self, rows: np.ndarray) -> None:
        """Append rows [n, width]."""
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.count += len(rows)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._file.seek(0)
                self._file.write(_npy_header((self.count, self.width), self.dtype))
                self._file.flush()
                os.fsync(self._file.fileno())
                self._temporary.replace(self.path)
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def token_dtype(tokenizer: Any) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 that holds every token id."""
    return np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)


def pack_documents(
    documents: Iterable[Document],
    tokenizer: Any,
    folder: Path,
    *,
    block_length: int,
    most: int | None = None,
) -> dict[str, int]:
    """Write documents end to end, an end-of-text token after each, cut into rows without padding.

    Reading stops at ``most`` rows; tokens that do not fill a last row are dropped.

    Returns:
        how many ``blocks`` and ``tokens`` were written.
    """
    dtype = token_dtype(tokenizer)
    end = end_of_text(tokenizer)
    rest = np.empty(0, dtype=dtype)
    with RowWriter(folder / TOKENS, block_length, dtype) as writer:
        for texts in _by_size(_pieces(documents)):
            encoded = encode(tokenizer, [text for text, _ in texts])
            for (_, last), ids in zip(texts, encoded, strict=True):
                if last:
                    ids.append(end)
            flat = np.fromiter(chain.from_iterable(encoded), dtype, sum(map(len, encoded)))
            rest = np.concatenate([rest, flat])
            full = len(rest) // block_length
            if most is not None:
                full = min(full, most - writer.count)
            writer.write(rest[: full * block_length].reshape(full, block_length))
            rest = rest[full * block_length :]
            if most is not None and writer.count >= most:
                break
    return {"blocks": writer.count, "tokens": writer.count * block_length}


def pack_pairs(
    pairs: Iterable[Pair],
    tokenizer: Any,
    template: str,
    folder: Path,
    *,
    block_length: int,
    counts: RowCounts,
    most: int | None = None,
) -> dict[str, int]:
    """Write pairs into rows, each into the first open row with room for all of it.

    The rest of a row is padded with the end-of-text token, segment 0. A pair longer than a row is
    a bad row. Reading stops when ``most`` rows are open or written and a pair fits none of them.

    Returns:
        how many ``blocks``, ``tokens`` (without padding), ``response_tokens`` and ``pairs`` were
        written.
    """
    total = {"blocks": 0, "tokens": 0, "response_tokens": 0, "pairs": 0}
    end = end_of_text(tokenizer)
    open_rows: list[_OpenRow] = []
    with (
        RowWriter(folder / TOKENS, block_length, token_dtype(tokenizer)) as tokens,
        RowWriter(folder / SEGMENTS, block_length, np.uint16) as segments,
        RowWriter(folder / LOSS_MASK, block_length, np.uint8) as loss_mask,
    ):

        def close(row: _OpenRow) -> None:
            tokens.write(row.array(row.tokens, end))
            segments.write(row.array(row.segments, 0))
            loss_mask.write(row.array(row.loss_mask, 0))

        for pair, prompt, response in _encoded(pairs, tokenizer, template):
            length = len(prompt) + len(response)
            if length > block_length:
                counts.good -= 1
                counts.add_bad(too_long(pair, block_length))
                continue
            row = next((row for row in open_rows if row.free >= length), None)
            if row is None:
                if most is not None and tokens.count + len(open_rows) >= most:
                    break
                if len(open_rows) == OPEN_ROWS:
                    fullest = min(range(OPEN_ROWS), key=lambda index: open_rows[index].free)
                    close(open_rows.pop(fullest))
                row = _OpenRow(block_length)
                open_rows.append(row)
            row.add(prompt, response)
            total["pairs"] += 1
            total["tokens"] += length
            total["response_tokens"] += len(response)
        for row in open_rows:
            close(row)
    return {**total, "blocks": tokens.count}


def too_long(pair: Pair, block_length: int) -> BadRow:
    """The bad row that a pair is when it does not fit a row of tokens."""
    return BadRow(pair.id, f"longer than block_length ({block_length} tokens)")


class _OpenRow:
    def __init__(self, length: int) -> None:
        self.free = self.length = length
        self.pairs = 0
        self.tokens: list[int] = []
        self.segments: list[int] = []
        self.loss_mask: list[int] = []

    def add(self, prompt: list[int], response: list[int]) -> None:
        length = len(prompt) + len(response)
        self.pairs += 1
        self.free -= length
        self.tokens += prompt + response
        self.segments += [self.pairs] * length
        mask = [0] * len(prompt) + [1] * len(response)
        mask[0] = 0  # the first token of a pair has nothing before it to be predicted from
        self.loss_mask += mask

    def array(self, values: list[int], fill: int) -> np.ndarray:
        return np.array([values + [fill] * (self.length - len(values))])


def _pieces(documents: Iterable[Document]) -> Iterator[tuple[str, bool]]:
    """Texts to tokenise, and whether the document ends with each."""
    for document in documents:
        cut = list(pieces(document.text, PIECE))
        for number, text in enumerate(cut, start=1):
            yield text, number == len(cut)


def _by_size(texts: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    size = 0
    for text, last in texts:
        batch.append((text, last))
        size += len(text)
        if size >= CHARACTERS_AT_ONCE or len(batch) >= TEXTS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    pairs: Iterable[Pair], tokenizer: Any, template: str
) -> Iterator[tuple[Pair, list[int], list[int]]]:
    for batch in _batches(pairs, PAIRS_AT_ONCE):
        for pair, tokens in zip(batch, encode_pairs(batch, tokenizer, template), strict=True):
            yield pair, *tokens


def _batches(values: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def _npy_header(shape: tuple[int, int], dtype: np.dtype[Any]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape},
    )
    assert len(header.getvalue()) == _HEADER
    return header.getvalue()
