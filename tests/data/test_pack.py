from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import END, tokenizer

from paretune.data.blocks import Blocks, positions
from paretune.data.pack import RowWriter, pack_documents, pack_pairs, token_dtype
from paretune.data.rows import Document, Pair, RowCounts
from paretune.data.template import encode_pairs

TEXTS = [
    "The quick brown fox.\n",
    "日本語のテキスト 👩‍🚀 naïve café",
    f"this document spells {END} in its text",
    "x",
    "def add(a, b):\n\treturn a + b\r\n" * 20,
]


def documents() -> list[Document]:
    return [Document(f"d{n}", f"d{n}", text) for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize("length", [8, 16, 37])
def test_blocks_read_end_to_end_give_the_documents_back(tmp_path: Path, length: int) -> None:
    written = pack_documents(documents(), tokenizer(), tmp_path, block_length=length)
    tokens = np.load(tmp_path / "tokens.npy").reshape(-1).tolist()
    assert written["tokens"] == len(tokens) == written["blocks"] * length
    ends = [position for position, token in enumerate(tokens) if token == tokenizer().eos_token_id]
    starts = [0, *(end + 1 for end in ends)]
    read = [
        tokenizer().decode(tokens[start:end], clean_up_tokenization_spaces=False)
        for start, end in zip(starts, [*ends, len(tokens)], strict=True)
    ]
    whole = read[: len(ends)]
    assert whole == TEXTS[: len(whole)]
    assert len(whole) >= len(TEXTS) - 1
    # Only the tokens that do not fill a last block are missing.
    rest = "".join(TEXTS[len(whole) :])
    assert rest.encode().startswith(read[-1].rstrip("\ufffd").encode())
    assert len(tokenizer().encode(rest)) + 1 - (len(tokens) - starts[-1]) < length


def test_reading_stops_when_there_are_rows_enough(tmp_path: Path) -> None:
    read = []

    def endless() -> Any:
        while True:
            read.append(1)
            yield Document(str(len(read)), "g", f"text number {len(read)} " * 50)

    written = pack_documents(endless(), tokenizer(), tmp_path, block_length=16, most=10)
    assert written["blocks"] == 10
    assert np.load(tmp_path / "tokens.npy").shape == (10, 16)
    assert len(read) < 1000


def test_a_text_longer_than_one_piece_is_cut_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paretune.data.pack.PIECE", 100)
    text = "".join(f"line {n} of a long text\n" for n in range(200))
    pack_documents([Document("a", "a", text)], tokenizer(), tmp_path, block_length=8)
    tokens = np.load(tmp_path / "tokens.npy").reshape(-1)
    decoded = tokenizer().decode(tokens[tokens != 0], clean_up_tokenization_spaces=False)
    assert text.startswith(decoded)
    assert (tokens == 0).sum() <= 1


def test_batches_count_all_tokens_but_the_first_of_a_row(tmp_path: Path) -> None:
    pack_documents(documents(), tokenizer(), tmp_path, block_length=16)
    blocks = Blocks(tmp_path, "cpt")
    batch = blocks.batch(np.array([2, 0]))
    stored = np.load(tmp_path / "tokens.npy")
    assert np.array_equal(batch.input_ids.numpy(), stored[[2, 0]].astype(np.int64))
    assert batch.loss_mask.sum().item() == 2 * 15
    assert not batch.loss_mask[:, 0].any()
    assert batch.position_ids is None
    assert batch.segments is None


def counts() -> RowCounts:
    return RowCounts("target.data", 0.01)


def test_pairs_are_packed_first_fit_with_masks_written_out_by_hand(tmp_path: Path) -> None:
    # With these tokens a byte each: "Question: a\nAnswer:" and " x" + end.
    pairs = [Pair("1", "1", "a", "x"), Pair("2", "2", "b", "yy"), Pair("3", "3", "c", "zzz")]
    sizes = [(len(p), len(r)) for p, r in encode_pairs(pairs, tokenizer(), "plain")]
    (p1, r1), (p2, r2), (p3, r3) = sizes
    length = p1 + r1 + p2 + r2 + 2  # the first two fit, with two tokens of padding
    written = pack_pairs(
        pairs, tokenizer(), "plain", tmp_path, block_length=length, counts=counts()
    )
    assert written["blocks"] == 2
    batch = Blocks(tmp_path, "ift").batch(np.array([0, 1]))
    assert batch.segments is not None
    assert batch.position_ids is not None
    rest = length - p3 - r3
    assert batch.segments.tolist() == [
        [1] * (p1 + r1) + [2] * (p2 + r2) + [0, 0],
        [1] * (p3 + r3) + [0] * rest,
    ]
    assert batch.loss_mask.int().tolist() == [
        [0] * p1 + [1] * r1 + [0] * p2 + [1] * r2 + [0, 0],
        [0] * p3 + [1] * r3 + [0] * rest,
    ]
    assert batch.position_ids.tolist() == [
        [*range(p1 + r1), *range(p2 + r2), 0, 1],
        [*range(p3 + r3), *range(rest)],
    ]
    first = batch.input_ids[0].tolist()
    end = tokenizer().eos_token_id
    assert tokenizer().decode(first[: p1 + r1]) == f"Question: a\nAnswer: x{END}"
    assert tokenizer().decode(first[p1 + r1 : -2]) == f"Question: b\nAnswer: yy{END}"
    assert first[-2:] == [end, end]


def test_every_pair_is_in_exactly_one_row_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paretune.data.pack.OPEN_ROWS", 3)  # so that rows are closed on the way
    random = np.random.default_rng(1)
    pairs = [
        Pair(str(n), str(n), f"question {n}" + " why" * int(random.integers(0, 8)), f"answer {n}")
        for n in range(120)
    ]
    written = pack_pairs(pairs, tokenizer(), "plain", tmp_path, block_length=100, counts=counts())
    tokens, segments = (np.load(tmp_path / f"{name}.npy") for name in ("tokens", "segments"))
    found = [
        tokenizer().decode(row[segment == number])
        for row, segment in zip(tokens, segments, strict=True)
        for number in range(1, int(segment.max()) + 1)
    ]
    expected = [f"Question: {pair.prompt}\nAnswer: {pair.response}{END}" for pair in pairs]
    assert sorted(found) == sorted(expected)
    assert written["pairs"] == 120
    assert written["tokens"] == (segments > 0).sum()
    assert written["tokens"] / tokens.size > 0.8


def test_a_pair_longer_than_a_row_is_a_bad_row(tmp_path: Path) -> None:
    counted = counts()
    pairs = [Pair("1", "1", "a", "b"), Pair("rows.jsonl:2", "2", "a " * 100, "b")]
    counted.good = 2
    written = pack_pairs(pairs, tokenizer(), "plain", tmp_path, block_length=32, counts=counted)
    assert written["pairs"] == 1
    assert counted.bad == {"rows.jsonl:2": "longer than block_length (32 tokens)"}
    assert counted.good == 1


def test_pairs_stop_at_the_rows_needed(tmp_path: Path) -> None:
    pairs = [Pair(str(n), str(n), f"question {n}", "yes") for n in range(500)]
    written = pack_pairs(
        pairs, tokenizer(), "plain", tmp_path, block_length=64, counts=counts(), most=7
    )
    assert written["blocks"] == 7
    assert np.load(tmp_path / "loss_mask.npy").shape == (7, 64)


def test_positions_start_again_with_each_segment() -> None:
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 0, 0]])
    assert positions(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 0, 1]]


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with RowWriter(tmp_path / "a.npy", 4, np.uint16) as writer:
            writer.write(np.ones((2, 4)))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_token_ids_are_stored_in_the_smallest_type_that_holds_them() -> None:
    class Large:
        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

    assert token_dtype(Large(65_536)) == np.uint16
    assert token_dtype(Large(65_537)) == np.uint32
