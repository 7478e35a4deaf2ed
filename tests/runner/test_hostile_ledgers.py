"""Ledgers from strangers: names that are paths, links that lead out, records of another kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runner_helpers import small_study

import paretune
from paretune.errors import Damaged, UserError
from paretune.files import read_jsonl, read_sealed, sealed_lines, write_sealed
from paretune.runner.inside import refuse_links_out
from paretune.runner.ledger import Ledger

ARMS = "  - {method: lora, rank: [1, 2], learning_rate: 5e-3}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    study = small_study(folder, arms=ARMS, at="4ba")
    return paretune.run(study, folder / "study", report=False)


@pytest.fixture
def ledger(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


def an_arm(ledger: Path) -> Path:
    return sorted((ledger / "arms").iterdir())[0]


@pytest.mark.parametrize(
    "arm_id", ["../../escape", "/etc", "..", "", ".hidden", "a/b", "a\0b", "x" * 300, "a\nb"]
)
def test_an_arm_id_that_is_a_path_is_refused(ledger: Path, arm_id: str) -> None:
    with pytest.raises(UserError, match="is not a name that Paretune gives"):
        Ledger(ledger).arm_folder(arm_id)
    write_sealed(ledger / "cohorts.json", {"cohorts": [[arm_id]]})
    with pytest.raises(Damaged, match=r"cohorts\.json: not what Paretune writes"):
        paretune.status(ledger)


@pytest.mark.parametrize(
    "what", ["arms", "base", "runs", "data", "an arm", "checkpoints", "a file"]
)
def test_a_link_that_leads_out_is_refused_before_anything_is_written(
    finished: Path, ledger: Path, tmp_path: Path, what: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    places = {
        "an arm": an_arm(ledger),
        "checkpoints": an_arm(ledger) / "checkpoints",
        "a file": an_arm(ledger) / "status.json",
    }
    path = places.get(what, ledger / what)
    target = outside / "status.json" if what == "a file" else outside
    if path.is_dir():
        shutil.rmtree(path)
    else:
        shutil.copy(path, target)
        path.unlink()
    path.symlink_to(target)
    before = {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()}
    study = small_study(tmp_path, arms=ARMS, at="4ba")
    actions: list[Callable[[], object]] = [
        lambda: paretune.run(study, ledger, report=False),
        lambda: paretune.status(ledger),
        lambda: paretune.claims(ledger),
        lambda: paretune.load(ledger),
    ]
    for action in actions:
        with pytest.raises(UserError, match="symbolic link that leads out of the study's folder"):
            action()
    assert {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()} == before


def test_links_within_and_to_the_folder_are_allowed(ledger: Path, tmp_path: Path) -> None:
    (ledger / "latest").symlink_to("arms")
    (tmp_path / "short").symlink_to(ledger)
    refuse_links_out(tmp_path / "short")
    assert paretune.status(tmp_path / "short") == paretune.status(ledger)
    (ledger / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop: a symbolic link"):
        paretune.status(ledger)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", "4"),
        ("tokens", -1),
        ("tokens", 2**70),
        ("tokens", True),
        ("metric", "../../escape"),
        ("metric", "a\0b"),
        ("metric", ["target/bits_per_byte"]),
        ("value", "0.5"),
        ("n", None),
        ("unit", {"<b>": 1}),
    ],
)
def test_a_score_of_another_kind_is_damage(ledger: Path, field: str, value: Any) -> None:
    """With a checksum that is right: whoever wrote the row also sealed it."""
    path = an_arm(ledger) / "scores.jsonl"
    rows = read_jsonl(path)
    path.write_text(sealed_lines([{**rows[0], field: value}, *rows[1:]]))
    with pytest.raises(Damaged, match=rf"scores\.jsonl: not what Paretune writes \(row 1, {field}"):
        paretune.load(ledger)


def test_checksums_cannot_name_files_elsewhere(ledger: Path) -> None:
    folder = an_arm(ledger) / "checkpoints" / "256"
    sums = read_sealed(folder / "checksums.json")
    write_sealed(folder / "checksums.json", {**sums, "../../../../../rows.jsonl": "0" * 64})
    with pytest.raises(UserError, match="is not a name that Paretune gives"):
        paretune.export(ledger, an_arm(ledger).name, ledger.parent / "exported")


def test_settings_of_another_kind_are_damage(ledger: Path) -> None:
    path = an_arm(ledger) / "arm.json"
    write_sealed(path, {**read_sealed(path), "method": "<script>"})
    with pytest.raises(Damaged, match=r"arm\.json: not what Paretune writes \(method"):
        paretune.load(ledger)
