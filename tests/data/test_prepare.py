from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import questions, sentences, study, tokenizer, write_jsonl

from paretune.data import store
from paretune.data.prepare import check_budgets, prepare
from paretune.data.rows import Document, Pair
from paretune.errors import UserError
from paretune.study.config import StudyConfig


def corpus(tmp_path: Path, count: int = 60) -> dict[str, Any]:
    write_jsonl(tmp_path / "rows.jsonl", sentences(count))
    return {"from": "json", "path": str(tmp_path / "rows.jsonl")}


def content(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {name: facts["sha256"] for name, facts in manifest["files"].items()}


def trained_text(folder: Path) -> str:
    return tokenizer().decode(np.load(folder / "tokens.npy").reshape(-1).tolist())


def test_no_text_is_on_both_sides_even_where_the_data_repeat_themselves(tmp_path: Path) -> None:
    rows = sentences(60) + sentences(60)  # the second half copies the first, under other names
    write_jsonl(tmp_path / "rows.jsonl", rows)
    config = study({"from": "json", "path": str(tmp_path / "rows.jsonl")})
    prepared = prepare(config, tokenizer(), tmp_path / "data")
    text = trained_text(tmp_path / "data")
    assert prepared.heldout
    for document in prepared.heldout:
        assert isinstance(document, Document)
        assert document.text not in text
    assert prepared.manifest["target"]["left_out"]["copy of a held-out row"] > 0


def test_a_prompt_held_out_is_not_trained_on(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", questions(80) + questions(80))
    config = study(
        {"from": "json", "path": str(tmp_path / "rows.jsonl")}, regime="ift", block_length=64
    )
    prepared = prepare(config, tokenizer(), tmp_path / "data")
    text = trained_text(tmp_path / "data")
    for pair in prepared.heldout:
        assert isinstance(pair, Pair)
        assert f"Question: {pair.prompt}\n" not in text


def test_groups_stay_together(tmp_path: Path) -> None:
    rows = [{**row, "book": f"book {n % 12}"} for n, row in enumerate(sentences(120))]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    config = study(
        {"from": "json", "path": str(tmp_path / "rows.jsonl"), "group": "book"}, items=64
    )
    prepared = prepare(config, tokenizer(), tmp_path / "data")
    groups = {document.group for document in prepared.heldout}
    text = trained_text(tmp_path / "data")
    for row in rows:
        if row["book"] in groups:
            assert row["text"] not in text
    assert 0 < len(groups) < 12
    assert prepared.manifest["heldout"]["split"]["by"].startswith("groups")


def test_one_document_is_split_by_position_and_the_manifest_says_so(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("".join(row["text"] + "\n" for row in sentences(80)))
    config = study({"from": "text", "path": str(tmp_path / "book.txt")}, heldout=0.1)
    prepared = prepare(config, tokenizer(), tmp_path / "data")
    (tail,) = prepared.heldout
    assert isinstance(tail, Document)
    assert tail.text.startswith("Entry 7")
    assert tail.text not in trained_text(tmp_path / "data")
    assert "one document" in prepared.manifest["heldout"]["split"]["by"]


def test_heldout_data_of_their_own_and_source_texts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "other.jsonl", sentences(9, first=50))
    (tmp_path / "prose.txt").write_text("A prose text. " * 50)
    config = study(
        corpus(tmp_path),
        heldout={"from": "json", "path": str(tmp_path / "other.jsonl")},
        items=64,
        texts=[{"name": "prose", "data": {"from": "text", "path": str(tmp_path / "prose.txt")}}],
    )
    prepared = prepare(config, tokenizer(), tmp_path / "data")
    assert [d.text for d in prepared.heldout if isinstance(d, Document)] == [
        row["text"] for row in sentences(9, first=50)
    ]
    assert [d.text for d in prepared.texts["prose"]] == ["A prose text. " * 50]
    text = trained_text(tmp_path / "data")
    assert "Entry 49 of" in text
    assert "Entry 50 of" not in text  # it is in both files, so it is only scored


def test_a_second_call_reads_the_folder_and_not_the_source(tmp_path: Path) -> None:
    config = study(corpus(tmp_path))
    first = prepare(config, tokenizer(), tmp_path / "data")
    (tmp_path / "rows.jsonl").unlink()
    second = prepare(config, tokenizer(), tmp_path / "data")
    assert second.heldout == first.heldout
    assert second.manifest == first.manifest
    rows = np.arange(second.blocks.count)
    assert second.blocks.batch(rows).input_ids.equal(first.blocks.batch(rows).input_ids)


@pytest.mark.parametrize("regime", ["cpt", "ift"])
def test_the_same_settings_give_the_same_bytes(tmp_path: Path, regime: str) -> None:
    write_jsonl(tmp_path / "rows.jsonl", (sentences if regime == "cpt" else questions)(90))
    config = study(
        {"from": "json", "path": str(tmp_path / "rows.jsonl")}, regime=regime, block_length=64
    )
    prepare(config, tokenizer(), tmp_path / "one")
    prepare(config, tokenizer(), tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_preparation_that_was_killed_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study(corpus(tmp_path))
    prepare(config, tokenizer(), tmp_path / "undisturbed")

    def killed(*args: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(store, "finish", killed)
    with pytest.raises(SystemExit):
        prepare(config, tokenizer(), tmp_path / "data")
    monkeypatch.undo()
    (tmp_path / "data" / ".tokens.npy.1.tmp").write_bytes(b"half")
    os.utime(tmp_path / "data" / ".tokens.npy.1.tmp", (0, 0))
    assert not (tmp_path / "data" / "manifest.json").exists()
    prepare(config, tokenizer(), tmp_path / "data")
    assert content(tmp_path / "data") == content(tmp_path / "undisturbed")
    assert not list((tmp_path / "data").glob(".*"))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"block_length": 8}, "training.block_length was 16 and is now 8"),
        ({"heldout": 0.3}, "target.heldout was 0.2 and is now 0.3"),
        ({"items": 9}, "target.items was 4 and is now 9"),
        ({"at": "10ba"}, "budgets.at .* was null and is now 22"),
    ],
)
def test_a_folder_for_other_settings_is_refused(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    data = corpus(tmp_path)
    prepare(study(data), tokenizer(), tmp_path / "data")
    with pytest.raises(UserError, match=f"{key}.*Choose another output folder, or delete"):
        prepare(study(data, **change), tokenizer(), tmp_path / "data")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    import copy

    config = study(corpus(tmp_path))
    prepare(config, tokenizer(), tmp_path / "data")
    other = copy.deepcopy(tokenizer())
    other.add_tokens(["river"])
    with pytest.raises(UserError, match="fingerprint of its tokenizer"):
        prepare(config, other, tmp_path / "data")


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_folder_is_named(tmp_path: Path, damage: str) -> None:
    config = study(corpus(tmp_path))
    prepare(config, tokenizer(), tmp_path / "data")
    path = tmp_path / "data" / "tokens.npy"
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[200] ^= 1
        path.write_bytes(raw)
    elif damage == "cut":
        path.write_bytes(raw[:-2])
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"tokens\.npy (has changed|is gone).*put it back"):
        prepare(config, tokenizer(), tmp_path / "data")


def budgets(config: StudyConfig, tmp_path: Path) -> list[int]:
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    return check_budgets(config, prepare(config, tokenizer(), tmp_path / "data").blocks)


def test_budgets_in_all_units_become_steps(tmp_path: Path) -> None:
    data = corpus(tmp_path, 100)
    assert budgets(study(data, at=["320", "5ba", "20ba"]), tmp_path) == [5, 10, 20]
    one, three = budgets(study(data, at=["3ep", "1ep"]), tmp_path)
    assert three == 3 * one


def test_a_budget_beyond_the_data_is_refused_unless_it_may_repeat(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    with pytest.raises(UserError, match=r"budgets.at: 1M takes 31250 steps of 32 tokens.*repeat"):
        budgets(study(data, at=["1k", "1M"]), tmp_path)
    assert budgets(study(data, at=["1k", "1M"], repeat=True), tmp_path) == [32, 31250]


def test_two_budgets_on_one_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"budgets\.at: 310 and 10ba both end at step 10"):
        budgets(study(corpus(tmp_path), at=["310", "10ba"]), tmp_path)


def test_arithmetic_is_split_by_what_it_says(tmp_path: Path) -> None:
    config = study(
        {"from": "arithmetic", "count": 400}, regime="ift", heldout=0.1, items=30, block_length=192
    )
    prepared = prepare(config, tokenizer(), tmp_path / "data")
    text = trained_text(tmp_path / "data")
    assert len(prepared.heldout) > 20
    for pair in prepared.heldout:
        assert isinstance(pair, Pair)
        assert pair.prompt not in text


def test_long_heldout_documents_are_kept_in_parts_and_few(tmp_path: Path) -> None:
    for n in range(6):
        lines = (f"Line {n}.{k} of a very long book, as books go.\n" for k in range(20_000))
        (tmp_path / f"book{n}.txt").write_text("".join(lines))
    config = study(
        corpus(tmp_path),
        texts=[{"name": "books", "data": {"from": "text", "path": str(tmp_path)}, "items": 8}],
    )
    books = prepare(config, tokenizer(), tmp_path / "data").texts["books"]
    assert {document.group for document in books} == {f"book{n}.txt" for n in range(6)}
    assert all(document.text.startswith("Line") for document in books)
    assert sum(len(document.text) for document in books) < 300_000


def test_preparing_imports_neither_torch_nor_datasets() -> None:
    code = (
        "import sys, paretune.data.prepare, paretune.data.order\n"
        "sys.exit(' '.join({'torch', 'datasets', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
