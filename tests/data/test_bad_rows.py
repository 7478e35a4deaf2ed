"""Rows and files that cannot be used, and the message each gets; the docs print these tables."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from data_helpers import questions, sentences, study, tokenizer, write_jsonl

from paretune.data.prepare import check_sources, prepare
from paretune.errors import UserError

DOCUMENT_ROWS: list[tuple[str, bytes, str]] = [
    ("not JSON", b'{"text": "cut off', "line 4: not JSON"),
    ("a bare word", b"hello", "line 4: not JSON"),
    ("a list", b'["a text"]', "line 4: a row must be an object with fields, not a list"),
    ("a number", b"3", "line 4: a row must be an object with fields, not a number"),
    ("null", b"null", "line 4: a row must be an object with fields, not null"),
    ("no text field", b'{"txt": "hello"}', "line 4: no field 'text'"),
    ("text is null", b'{"text": null}', "line 4: 'text' is not text but null"),
    ("text is a number", b'{"text": 3.5}', "line 4: 'text' is not text but a number"),
    ("text is a list", b'{"text": ["a", "b"]}', "line 4: 'text' is not text but a list"),
    ("text is an object", b'{"text": {"en": "a"}}', "line 4: 'text' is not text but an object"),
    ("text is empty", b'{"text": ""}', "line 4: 'text' is empty"),
    ("text is blank", b'{"text": " \\n\\t "}', "line 4: 'text' is empty"),
    ("not UTF-8", b'{"text": "caf\xe9"}', "line 4: not UTF-8"),
    (
        "half a character",
        b'{"text": "\\ud83d"}',
        "line 4: 'text' holds half of a surrogate pair, which is not text",
    ),
]
PAIR_ROWS: list[tuple[str, bytes, str]] = [
    ("no response field", b'{"prompt": "Why?"}', "line 4: no field 'response'"),
    (
        "response is empty",
        b'{"prompt": "Why?", "response": ""}',
        "line 4: 'response' is empty",
    ),
    (
        "response is null",
        b'{"prompt": "Why?", "response": null}',
        "line 4: 'response' is not text but null",
    ),
    (
        "response is a number",
        b'{"prompt": "How many?", "response": 7}',
        "line 4: 'response' is not text but a number",
    ),
    ("prompt is blank", b'{"prompt": "  ", "response": "x"}', "line 4: 'prompt' is empty"),
    (
        "longer than a row",
        json.dumps({"prompt": "why " * 100, "response": "so"}).encode(),
        "longer than block_length (64 tokens)",
    ),
]
FILES: list[tuple[str, str, bytes, str]] = [
    ("an empty file", "rows.jsonl", b"", "target.data: there are no rows in it"),
    ("blank lines only", "rows.jsonl", b"\n\n \n", "target.data: there are no rows in it"),
    (
        "no row has the field",
        "rows.jsonl",
        b'{"title": "a", "content": "b"}\n' * 3,
        "no row has a field 'text'; the fields are title, content",
    ),
    (
        "one short document",
        "rows.jsonl",
        b'{"text": "x"}',
        "too short to hold a part of it out",
    ),
    (
        "less than a batch",
        "rows.jsonl",
        b'{"text": "a b"}\n{"text": "c d"}\n',
        "target.data: the training data fill 0 blocks of 64 tokens, and a batch takes 2",
    ),
    (
        "gzip that is none",
        "rows.jsonl.gz",
        b'{"text": "a"}\n',
        "cannot be read: Not a gzipped file",
    ),
    (
        "gzip cut off",
        "rows.jsonl.gz",
        gzip.compress(b'{"text": "a b c"}\n' * 500)[:-12],
        "cannot be read: Compressed file ended",
    ),
    ("Parquet that is none", "rows.parquet", b"PAR?", "it is not a Parquet file"),
    ("text that is not UTF-8", "rows.txt", b"caf\xe9", "rows.txt: not UTF-8"),
    ("text that is empty", "rows.txt", b" \n", "rows.txt: 'text' is empty"),
]


def message(tmp_path: Path, name: str, content: bytes, regime: str) -> str:
    (tmp_path / name).write_bytes(content)
    kind = {"jsonl": "json", "gz": "json", "parquet": "parquet", "txt": "text"}
    data = {"from": kind[name.rsplit(".")[-1]], "path": str(tmp_path / name)}
    config = study(data, regime=regime, block_length=64)
    with pytest.raises(UserError) as caught:
        prepare(config, tokenizer(), tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.json").exists()
    return str(caught.value)


def good(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [case[1:] for case in DOCUMENT_ROWS],
    ids=[case[0] for case in DOCUMENT_ROWS],
)
def test_a_document_row_that_cannot_be_used(tmp_path: Path, content: bytes, expected: str) -> None:
    lines = good(sentences(3)) + content + b"\n" + good(sentences(3, first=3))
    shown = message(tmp_path, "rows.jsonl", lines, "cpt")
    assert shown.startswith("target.data: 1 of ")
    assert "more than training.max_bad_rows (1%) allows" in shown
    assert f"rows.jsonl {expected}" in shown


@pytest.mark.parametrize(
    ("content", "expected"), [case[1:] for case in PAIR_ROWS], ids=[case[0] for case in PAIR_ROWS]
)
def test_a_pair_row_that_cannot_be_used(tmp_path: Path, content: bytes, expected: str) -> None:
    lines = good(questions(3)) + content + b"\n" + good(questions(20)[3:])
    shown = message(tmp_path, "rows.jsonl", lines, "ift")
    assert shown.startswith("target.data: 1 of ")
    assert expected in shown
    assert "rows.jsonl" in shown


@pytest.mark.parametrize(
    ("name", "content", "expected"), [case[1:] for case in FILES], ids=[case[0] for case in FILES]
)
def test_a_file_that_cannot_be_used(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    assert expected in message(tmp_path, name, content, "cpt")


@pytest.mark.parametrize("regime", ["cpt", "ift"])
def test_a_few_bad_rows_are_counted_shown_and_skipped(tmp_path: Path, regime: str) -> None:
    rows = (sentences if regime == "cpt" else questions)(400)
    lines = good(rows[:100]) + b"oops\n" + good(rows[100:200]) + b"7\nnull\n" + good(rows[200:])
    (tmp_path / "rows.jsonl").write_bytes(lines)
    notes: list[str] = []
    config = study(
        {"from": "json", "path": str(tmp_path / "rows.jsonl")}, regime=regime, block_length=64
    )
    prepared = prepare(config, tokenizer(), tmp_path / "data", note=notes.append)
    about = prepared.manifest["target"]
    assert 350 < about["rows"] <= 403  # held-out rows that are not scored are not counted
    assert about["bad_rows"] == {
        "not JSON": 1,
        "a row must be an object with fields, not a number": 1,
        "a row must be an object with fields, not null": 1,
    }
    assert about["rows_read"] < 400  # the others are held out
    assert notes[0].startswith(f"target.data: skipped 3 of {about['rows']} rows: 1 not JSON")
    assert "rows.jsonl line 101: not JSON" in notes[0]


def test_many_bad_rows_stop_the_reading_before_all_is_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [*sentences(10), *([3] * 50_000)])
    with pytest.raises(UserError, match=r"\d+ of 1000 rows cannot be used"):
        prepare(
            study({"from": "json", "path": str(tmp_path / "rows.jsonl")}, at="500ba"),
            tokenizer(),
            tmp_path / "data",
        )


@pytest.mark.parametrize(
    ("data", "regime", "expected"),
    [
        ({"from": "json", "path": "nowhere.jsonl"}, "cpt", "there is no file nowhere.jsonl"),
        ({"from": "text", "path": "nowhere/*.txt"}, "cpt", "no file matches nowhere/*.txt"),
        ({"from": "text", "path": "{tmp}"}, "cpt", "holds no text file (.txt"),
        ({"from": "json", "path": "{tmp}/rows.csv"}, "ift", "is a table, not JSON lines. pandas"),
        ({"from": "text", "path": "{tmp}"}, "ift", "'text' gives running text without prompts"),
        (
            {"from": "python-packages", "packages": ["jsom"]},
            "cpt",
            "no package 'jsom' in this interpreter",
        ),
        ({"from": "arithmetic", "count": 10**9}, "ift", "count 1000000000 is too many"),
    ],
)
def test_sources_are_checked_without_reading_them(
    tmp_path: Path, data: dict[str, object], regime: str, expected: str
) -> None:
    (tmp_path / "rows.csv").write_text("prompt,response\na,b\n")
    data = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in data.items()}
    (found,) = check_sources(study(data, regime=regime))
    assert expected in found


def test_all_sources_are_checked_at_once(tmp_path: Path) -> None:
    config = study(
        {"from": "json", "path": "a.jsonl"},
        heldout={"from": "json", "path": "b.jsonl"},
        texts=[
            {"name": "prose", "data": {"from": "text", "path": "c.txt"}},
        ],
    )
    assert [text.split(":")[0] for text in check_sources(config)] == [
        "target.data",
        "target.heldout",
        "source.texts.prose",
    ]
