"""Prepared data from strangers: a manifest or rows that Paretune did not write are damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paretune.data.store import FORMAT, check, finish, read_documents, read_pairs
from paretune.errors import Damaged, UserError

SETTINGS = {"regime": "cpt"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "heldout.jsonl").write_text('{"id": "a", "group": "b", "text": "c"}\n')
    finish(tmp_path, ["heldout.jsonl"], {"settings": SETTINGS})
    check(tmp_path, SETTINGS)
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"files": ["heldout.jsonl"]},
        {"files": {"heldout.jsonl": {}}},
        {"files": None},
        {"settings": None},
        {"settings": 3},
    ],
    ids=str,
)
def test_a_manifest_of_another_kind(folder: Path, change: dict[str, Any]) -> None:
    manifest = {"format": FORMAT, "settings": SETTINGS, "files": {}} | change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Damaged, match=r"manifest\.json: not what Paretune writes"):
        check(folder, SETTINGS)


@pytest.mark.parametrize("manifest", [[], 3, None, "x"])
def test_a_manifest_that_is_no_object(folder: Path, manifest: object) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError):
        check(folder, SETTINGS)


@pytest.mark.parametrize(
    "row", [{}, {"id": "a"}, {"id": "a", "group": "b", "text": 3}, {"id": "a", "__class__": "b"}]
)
def test_rows_of_another_kind(folder: Path, row: dict[str, Any]) -> None:
    path = folder / "heldout.jsonl"
    path.write_text(json.dumps(row) + "\n")
    for read in (read_documents, read_pairs):
        with pytest.raises(Damaged, match=r"heldout\.jsonl: not what Paretune writes"):
            read(path)
