from __future__ import annotations

import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.data import python_packages
from paretune.data.prepare import prepare
from paretune.data.python_packages import PythonCorpus, family
from paretune.data.rows import AnyRow, BadRow, Document
from paretune.errors import UserError
from paretune.study.sources import PythonPackages


def corpus(packages: Any = "stdlib") -> PythonCorpus:
    return PythonCorpus(
        PythonPackages.model_validate({"from": "python-packages", "packages": packages})
    )


def everything(source: PythonCorpus) -> list[AnyRow]:
    return list(source.rows(lambda id, group: True))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of our own."""
    folder = tmp_path / "lib"
    files = {
        "alpha.py": "a = 1\n",
        "copied.py": "a = 1\n",
        "beta/__init__.py": "",
        "beta/core.py": "b = 2\n",
        "beta/blank.py": "  \n\n",
        "beta/tests/test_core.py": "assert True\n",
        "beta/_vendor/alpha.py": "vendored = 1\n",
        "beta/test_more.py": "assert True\n",
        "beta/data.txt": "not code\n",
        "_beta.py": "private = 1\n",
        "not-a-module/x.py": "x = 1\n",
        "__pycache__/alpha.py": "x = 1\n",
        "site-packages/other.py": "x = 1\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "beta/latin.py").write_bytes(b"name = 'caf\xe9'\n")
    (folder / "beta/table.py").write_text("x = [\n" + "1,\n" * 200_000 + "]\n")
    paths = {**sysconfig.get_paths(), "stdlib": str(folder)}
    monkeypatch.setattr(python_packages.sysconfig, "get_paths", lambda: paths)
    return folder


def test_files_are_chosen_deduplicated_and_grouped_by_package(library: Path) -> None:
    source = corpus()
    rows = everything(source)
    documents = {row.id: row for row in rows if isinstance(row, Document)}
    assert set(documents) in (
        {"alpha.py", "beta/core.py", "_beta.py"},
        {"copied.py", "beta/core.py", "_beta.py"},
    )
    assert documents["_beta.py"].group == "beta"
    assert [row for row in rows if isinstance(row, BadRow)] == [
        BadRow("beta/latin.py", "not UTF-8")
    ]
    assert source.left_out == Counter({"copy of a file already read": 1})


def test_the_manifest_names_packages_versions_and_content(library: Path) -> None:
    source = corpus()
    everything(source)
    facts = source.facts()
    assert facts["packages"]["beta"]["files"] == 2
    assert facts["packages"]["beta"]["version"].startswith("Python 3.")
    before = facts["packages"]["beta"]["sha256"]
    (library / "beta/core.py").write_text("b = 3\n")
    source = corpus()
    everything(source)
    assert source.facts()["packages"]["beta"]["sha256"] != before


def test_files_of_unwanted_packages_are_not_opened(library: Path) -> None:
    (library / "alpha.py").write_bytes(b"\xff")
    rows = list(corpus().rows(lambda id, group: group == "beta"))
    assert {row.group for row in rows if isinstance(row, Document)} == {"beta"}
    assert [row.place for row in rows if isinstance(row, BadRow)] == ["beta/latin.py"]


def test_packages_take_turns_so_that_a_small_budget_samples_all() -> None:
    from paretune.data.rows import RowCounts

    labels = list(corpus().labels(RowCounts("target.data", 0.01)))
    groups = [group for _, group in labels]
    assert len(set(groups)) > 100
    assert len(set(groups[:100])) == 100
    assert len({name for name, _ in labels}) == len(labels)


def test_named_packages_and_those_that_are_not_there() -> None:
    rows = everything(corpus(["json", "logging"]))
    assert {row.group for row in rows if isinstance(row, Document)} == {"json", "logging"}
    with pytest.raises(UserError, match=r"no package 'loging'.*Did you mean logging"):
        corpus(["loging"])


def test_installed_packages_go_by_distribution() -> None:
    source = corpus(["yaml", "pydantic"])
    rows = everything(source)
    assert {row.group for row in rows if isinstance(row, Document)} == {"PyYAML", "pydantic"}
    import yaml

    assert source.facts()["packages"]["PyYAML"]["version"] == f"PyYAML {yaml.__version__}"


def test_private_twins_belong_to_the_module_they_copy() -> None:
    modules = frozenset({"decimal", "_pydecimal", "io", "_pyio", "collections", "queue", "_weird"})
    assert family("_pydecimal", modules) == "decimal"
    assert family("_pyio", modules) == "io"
    assert family("_collections_abc", modules) == "collections"
    assert family("_weird", modules) == "_weird"
    assert family("queue", modules) == "queue"


def test_a_pocket_study_is_prepared_in_seconds_without_leaks(tmp_path: Path) -> None:
    from data_helpers import study, tokenizer

    config = study(
        {"from": "python-packages", "packages": "stdlib"},
        at=["50k", "150k"],
        heldout=0.05,
        items=16,
        block_length=128,
        batch_size=8,
    )
    started = time.process_time()
    prepared = prepare(config, tokenizer(), tmp_path / "data")
    assert time.process_time() - started < 10  # about 1 s
    assert prepared.blocks.count * 128 >= 150_000
    groups = set(prepared.manifest["heldout"]["groups"])
    read = prepared.manifest["target"]["packages"]
    assert groups < set(read)
    stored = prepared.blocks.batch(np.arange(prepared.blocks.count))
    text = tokenizer().decode(stored.input_ids.flatten().tolist())
    for document in prepared.heldout:
        assert isinstance(document, Document)
        middle = document.text[len(document.text) // 3 :][:200]
        assert len(middle) < 60 or middle not in text

    # The held-out side does not change with the budget, nor does reading go further than needed.
    more = study(
        {"from": "python-packages", "packages": "stdlib"},
        at="300k",
        heldout=0.05,
        items=16,
        block_length=128,
        batch_size=8,
    )
    assert prepare(more, tokenizer(), tmp_path / "more").heldout == prepared.heldout
    assert sum(facts["files"] for facts in read.values()) < 100
