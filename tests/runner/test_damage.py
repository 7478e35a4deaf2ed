"""Torn and altered files: found by their checksums, set aside, made anew; nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest
import torch
from runner_helpers import small_study, study_text, write_text_rows

import paretune
from paretune import UserError
from paretune.analyse.results import tidy, to_csv
from paretune.errors import Damaged, Stopped
from paretune.files import read_jsonl, read_sealed
from paretune.runner import repair
from paretune.runner.ledger import Ledger
from paretune.runner.run import run
from paretune.study.config import Study

ARMS = "\n  - {method: lora, rank: [2, 4], learning_rate: 5e-3}\n"


def settings() -> dict[str, object]:
    return {"arms": ARMS, "at": "3ba, 6ba"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(small_study(folder, **settings()), folder / "out", report=False)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "out", tmp_path / "out")
    return tmp_path / "out"


def study(whole: Path) -> Study:
    return small_study(whole, **settings())


def csv(folder: Path) -> str:
    return to_csv(tidy(paretune.load(folder)))


def flip(path: Path) -> None:
    """Change one digit, so that what remains is valid wherever only syntax is looked at."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if chr(byte) in "1357"]
    at = places[len(places) // 2] if places else len(content) // 2
    content[at] ^= 1
    path.write_bytes(content)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


NAMES = [
    "arms/*/arm.json",
    "arms/*/status.json",
    "arms/*/scores.jsonl",
    "arms/*/items/*/target.bits_per_byte.parquet",
    "arms/*/checkpoints/*/adapter_model.safetensors",
    "arms/*/checkpoints/*/checksums.json",
    "base/scores.jsonl",
    "base/probe.jsonl",
    "base/items/0/self_probe.kl.parquet",
    "data/tokens.npy",
    "data/heldout.jsonl",
    "data/manifest.json",
    "cohorts.json",
    "ledger.json",
    "study.yaml",
]


# Every file in one way here; benchmarks/faults.py damages all of them in all ways
@pytest.mark.parametrize(("name", "damage"), zip(NAMES, cycle([flip, tear, flip, blank])))
def test_a_damaged_file_is_made_anew(
    whole: Path, copy: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = sorted(copy.glob(name))[-1]
    before = path.read_bytes()
    damage(path)
    run(study(whole), copy, report=False)
    assert csv(copy) == csv(whole / "out")
    (arms,) = Ledger(copy).cohorts()
    assert all(Ledger(copy).status(arm)["state"] == "done" for arm in arms)
    if path.name.endswith(("safetensors", "parquet", ".yaml", ".npy")):
        assert path.read_bytes() == before
    if name not in ("ledger.json", "study.yaml"):
        aside = [row for row in Ledger(copy).log() if row["event"] == "set aside"]
        assert aside or damage is not flip, "without its last line end, a file is only cut off"
        for row in aside:
            assert (copy / row["path"]).exists()


def test_readers_refuse_what_was_altered(copy: Path) -> None:
    ledger = Ledger(copy)
    arm = ledger.cohorts()[0][0]
    flip(ledger.items_path(arm, 192, "target/bits_per_byte"))
    with pytest.raises(Damaged, match=r"target.bits_per_byte.parquet.*paretune run"):
        Ledger(copy).items(arm, 192, "target/bits_per_byte")
    flip(copy / "arms" / arm / "scores.jsonl")
    with pytest.raises(Damaged, match=r"scores.jsonl, line \d+: not readable .its checksum"):
        paretune.load(copy)


def test_a_flipped_line_of_a_curve_is_the_only_one_that_is_lost(whole: Path, copy: Path) -> None:
    path = sorted(copy.glob("arms/*/train.jsonl"))[0]
    flip(path)
    run(study(whole), copy, report=False)
    assert len(read_jsonl(path, sealed=True)) == 5
    assert path.with_name("train.jsonl.damaged-1").exists()


def test_a_changed_base_is_refused_with_the_difference(tmp_path: Path) -> None:
    from importlib import resources

    base = tmp_path / "base"
    shutil.copytree(str(resources.files("paretune.pocket") / "base"), base)
    text = study_text(tmp_path, **settings()).replace("base: pocket", f"base: {base}")  # type: ignore[arg-type]
    (tmp_path / "study.yaml").write_text(text)
    run(tmp_path / "study.yaml", tmp_path / "out", report=False)
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"the base .*base changed.*model.safetensors had .*sha256"):
        run(tmp_path / "study.yaml", tmp_path / "out", report=False)


def test_changed_data_are_refused_and_absent_data_are_not(tmp_path: Path) -> None:
    begun = small_study(tmp_path, **settings())
    run(begun, tmp_path / "out", report=False)
    before = csv(tmp_path / "out")
    write_text_rows(tmp_path / "rows.jsonl", rows=61)
    with pytest.raises(UserError, match=r"target.data changed.*rows.jsonl had .* bytes"):
        run(begun, tmp_path / "out", report=False)
    (tmp_path / "rows.jsonl").unlink()
    run(begun, tmp_path / "out", report=False)
    assert csv(tmp_path / "out") == before


def test_data_prepared_again_must_come_out_the_same(tmp_path: Path) -> None:
    begun = small_study(tmp_path, **settings())
    run(begun, tmp_path / "out", report=False)
    # Another version would tokenise in another way: stands for anything that changes the result
    facts = Ledger(tmp_path / "out").facts()
    facts["prepared"]["tokens.npy"]["sha256"] = "0" * 64
    Ledger(tmp_path / "out").set_facts(**facts)
    with pytest.raises(UserError, match=r"the prepared data changed.*tokens.npy"):
        run(begun, tmp_path / "out", report=False)


def test_what_a_newer_version_wrote_is_refused(whole: Path, copy: Path) -> None:
    Ledger(copy).set_facts(format=3, paretune="9.9")
    for read in (lambda: run(study(whole), copy), lambda: paretune.status(copy)):
        with pytest.raises(UserError, match=r"newer version \(9.9, format 3\).*Update paretune"):
            read()


def test_what_an_older_version_wrote_is_brought_up_to_date(whole: Path, copy: Path) -> None:
    """Format 1 had no checksums and no ledger.json, and kept runs in one file."""
    for name in ("ledger.json", ".ledger.json"):
        (copy / name).unlink()
    shutil.rmtree(copy / "runs")
    for path in [*copy.glob("arms/*/*.json"), *copy.rglob("checksums.json"), copy / "cohorts.json"]:
        value = read_sealed(path)
        path.write_text(json.dumps(value.get("cohorts", value)))
    for path in [*copy.glob("arms/*/*.jsonl"), copy / "base" / "scores.jsonl"]:
        rows = read_jsonl(path)
        for row in rows:
            row.pop("items_sha256", None)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert csv(copy) == csv(whole / "out"), "reading needs no migration"
    run(study(whole), copy, report=False)
    assert Ledger(copy).format == 2
    assert Ledger(copy).facts()["migrated_from"] == 1
    assert csv(copy) == csv(whole / "out")
    flip(copy / "base" / "scores.jsonl")
    with pytest.raises(Damaged):
        paretune.load(copy)


@pytest.mark.slow
def test_two_runs_at_once_share_the_arms(whole: Path, tmp_path: Path) -> None:
    """Two processes on one folder: each arm is trained once, and both end well."""
    (tmp_path / "study.yaml").write_text(study_text(whole, **settings()))  # type: ignore[arg-type]
    command = [sys.executable, "-m", "paretune", "run", "study.yaml", "--out", "out", "--no-report"]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE) for _ in range(2)
    ]
    said = [process.communicate(timeout=900)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert csv(tmp_path / "out") == csv(whole / "out")
    trained = [row["arms"] for row in Ledger(tmp_path / "out").log() if row["event"] == "cohort"]
    assert len(trained) == 1
    frame = pd.read_json(next((tmp_path / "out").glob("arms/*/scores.jsonl")), lines=True)
    assert not frame.duplicated(["tokens", "metric"]).any()


def test_being_asked_to_stop_sets_nothing_aside(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM while a sound file is read."""

    def stop(path: Path) -> None:
        raise Stopped("stopped by SIGTERM")

    ledger = Ledger.open(copy)
    arms = ledger.study().arms
    monkeypatch.setattr(repair, "read_sealed", stop)
    before = sorted(copy.rglob("*"))
    with pytest.raises(Stopped):
        repair.Repair(ledger, lambda path, reason: None).study(arms)
    assert sorted(copy.rglob("*")) == before
