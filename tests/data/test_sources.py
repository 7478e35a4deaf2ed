from __future__ import annotations

import gzip
import json
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import questions, sentences, study, write_jsonl

from paretune.data import stream
from paretune.data.rows import AnyRow, Document, Pair
from paretune.data.sources import open_source
from paretune.errors import Fault, UserError
from paretune.study.places import Places


def read(data: dict[str, Any], *, regime: str = "cpt") -> list[AnyRow]:
    config = study(data, regime=regime)
    source = open_source(config.target.data, where="target.data", pairs=regime == "ift")
    return list(source.rows(lambda id, group: True))


def texts(rows: list[AnyRow]) -> list[str]:
    return [row.text for row in rows if isinstance(row, Document)]


def test_json_lines_plain_compressed_and_as_a_list_say_the_same(tmp_path: Path) -> None:
    rows = sentences(5)
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "e.json").write_bytes(b"\xef\xbb\xbf\n" + (tmp_path / "c.json").read_bytes())
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.jsonl", "e.json"):
        found = read({"from": "json", "path": str(tmp_path / name)})
        assert texts(found) == [row["text"] for row in rows]
        assert next(row.id for row in found if isinstance(row, Document)) == f"{name}:1"


def test_a_folder_a_pattern_and_a_list_of_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.json", "notes.txt", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / name, [{"text": name}])
    folder = read({"from": "json", "path": str(tmp_path)})
    assert texts(folder) == ["a.jsonl", "b.jsonl", "sub/c.json"]
    pattern = read({"from": "json", "path": str(tmp_path / "*.jsonl")})
    assert texts(pattern) == ["a.jsonl", "b.jsonl"]
    several = read({"from": "json", "path": [str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl")]})
    assert texts(several) == ["b.jsonl", "a.jsonl"]


def test_rows_of_files_with_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rows.jsonl", [{"text": name}])
    rows = read({"from": "json", "path": str(tmp_path)})
    assert [row.id for row in rows if isinstance(row, Document)] == [
        "x/rows.jsonl:1",
        "y/rows.jsonl:1",
    ]


def test_groups_come_from_their_field_and_fields_may_have_other_names(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [{"q": "Why?", "a": "So.", "book": 3}, {"q": "How?", "a": "Thus.", "book": "four"}],
    )
    rows = read(
        {"from": "json", "path": str(path), "prompt": "q", "response": "a", "group": "book"},
        regime="ift",
    )
    assert rows == [
        Pair("a.jsonl:1", "3", "Why?", "So."),
        Pair("a.jsonl:2", "four", "How?", "Thus."),
    ]


def test_limit_counts_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(9))
    assert len(read({"from": "json", "path": str(path), "limit": 4})) == 4


def test_parquet_gives_what_json_gives(tmp_path: Path) -> None:
    rows = [{**row, "more": n} for n, row in enumerate(questions(2500))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read({"from": "parquet", "path": str(tmp_path)}, regime="ift")
    assert [(row.prompt, row.response) for row in found if isinstance(row, Pair)] == [
        (row["prompt"], row["response"]) for row in rows
    ]


def test_parquet_without_the_field_names_those_it_has(tmp_path: Path) -> None:
    from data_helpers import tokenizer

    from paretune.data.prepare import prepare

    pq.write_table(pa.Table.from_pylist([{"body": "a", "id": 1}] * 4), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no row has a field 'text'; the fields are body, id"):
        prepare(study({"from": "parquet", "path": str(tmp_path)}), tokenizer(), tmp_path / "data")


def test_text_files_are_a_document_each(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("First.\n")
    (tmp_path / "two.md").write_text("Zweiter Text: ü.\n")
    rows = read({"from": "text", "path": str(tmp_path)})
    assert rows == [
        Document("one.txt", "one.txt", "First.\n"),
        Document("two.md", "two.md", "Zweiter Text: ü.\n"),
    ]


def test_pocket_prose_is_in_the_package() -> None:
    rows = read({"from": "pocket-prose"})
    assert len(rows) > 5
    assert all(isinstance(row, Document) and len(row.text) > 200 for row in rows)


def hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> dict[str, Any]:
    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setattr(stream, "PAUSES", (0.0, 0.0))
    monkeypatch.setitem(sys.modules, "datasets", module)
    return {"from": "hub", "name": "some/corpus", "config": "en", "revision": "abc"}


def test_the_hub_is_streamed_and_no_further_than_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from data_helpers import tokenizer

    from paretune.data.prepare import prepare

    furthest = [0]
    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))

        def stream() -> Any:
            for n in range(10**12):
                furthest[0] = max(furthest[0], n)
                yield {"text": f"Entry {n} of a corpus that has no end.\n" * 5}

        return stream()

    data = hub(monkeypatch, load)
    prepared = prepare(study(data, at="320tok"), tokenizer(), tmp_path / "data")
    assert prepared.blocks.count == 22  # ten steps of two rows, and one batch more
    assert furthest[0] < 2000
    arguments, options = asked[0]
    assert arguments == ("some/corpus", "en")
    assert options.items() >= {"split": "train", "revision": "abc", "streaming": True}.items()


def test_a_failing_hub_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [0]

    def load(*args: Any, **kwargs: Any) -> Any:
        tries[0] += 1
        raise ConnectionError("offline\nand a long story")

    with pytest.raises(Fault, match=r"'some/corpus' stopped at row 0 \(ConnectionError: offline\)"):
        read(hub(monkeypatch, load))
    assert tries == [3]


def test_what_no_further_try_can_mend_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [0]

    def load(*args: Any, **kwargs: Any) -> Any:
        tries[0] += 1
        raise ValueError("Unknown split 'trian'")

    with pytest.raises(UserError, match=r"'some/corpus' could not be read .*Unknown split"):
        read(hub(monkeypatch, load))
    assert tries == [1]


def test_a_hub_that_fails_on_the_way_goes_on_at_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]

    def load(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        for n in range(5):
            if n == calls[0]:
                raise TimeoutError
            yield {"text": f"row {n}"}

    rows = read(hub(monkeypatch, load))
    assert [row.text for row in rows] == [f"row {n}" for n in range(5)]
    assert [row.id for row in rows] == [f"some/corpus/train/{n}" for n in range(5)]
    assert calls == [5]


def test_a_hub_that_hangs_is_left_and_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PATIENCE", 0.2)
    hanging, over, calls = threading.Event(), threading.Event(), [0]

    def load(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        yield {"text": "one"}
        if not hanging.is_set():
            hanging.set()
            over.wait()
        yield {"text": "two"}

    data = hub(monkeypatch, load)
    # On a busy machine a row that does come may be late too, and is then asked for again
    monkeypatch.setattr(stream, "PAUSES", (0.0,) * 100)
    assert [row.text for row in read(data)] == ["one", "two"]
    assert hanging.is_set()
    assert calls[0] >= 2
    over.set()


def test_a_hub_that_stays_away_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        yield {"text": "one"}
        raise TimeoutError("nothing came")

    with pytest.raises(
        Fault, match=r"stopped at row 1 \(TimeoutError: nothing came\), and 2 further"
    ):
        read(hub(monkeypatch, load))


def test_a_fault_stays_a_fault_when_its_line_is_named() -> None:
    with pytest.raises(Fault, match=r"study.yaml, line 6: target\.data: it hangs"):  # noqa: SIM117
        with Places("study.yaml", lambda path: 6).named():
            raise Fault("target.data: it hangs")


def test_a_data_set_that_changes_under_the_reader_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = [0]

    def load(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        yield {"text": f"version {calls[0]}"}
        raise TimeoutError

    with pytest.raises(UserError, match=r"changed while it was read \(row 0 is another now\)"):
        read(hub(monkeypatch, load))
