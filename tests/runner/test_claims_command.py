"""`paretune claims` on a real ledger: the 30 arms of the english-30m study."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import paretune
from paretune.analyse.claims import score_card
from paretune.cli import app

ROOT = Path(__file__).resolve().parents[2]
LEDGER = ROOT / "docs" / "studies" / "english-30m-to-python" / "ledger.tar.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("study")
    with tarfile.open(LEDGER) as archive:
        archive.extractall(where, filter="data")
    return where / "english-30m-to-python"


@pytest.fixture(scope="module")
def printed(folder) -> str:
    done = CliRunner().invoke(app, ["claims", str(folder)])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def claims(folder, printed) -> dict:
    content = json.loads((folder / "claims.json").read_text())
    return {one["claim"]: one for one in content["claims"]}


def mean(folder: Path, pattern: str, metric: str) -> float:
    """Mean over arms and budgets of a score, from the raw files."""
    rows = [
        json.loads(line)
        for path in sorted((folder / "arms").glob(f"{pattern}/scores.jsonl"))
        for line in path.read_text().splitlines()
    ]
    table = pd.DataFrame(rows)
    return float(table.loc[table["metric"] == metric, "value"].mean())


def test_what_it_finds(claims):
    found = {name: one["verdict"] for name, one in claims.items()}
    decided = {name: one for name, one in found.items() if one != "unresolved"}
    assert decided == {
        "learns-less": "supported",
        "forgets-less": "supported",
        "forgets-less-at-matched-learning": "contradicted",
        "rank-orders-learning": "supported",
        "rank-orders-forgetting": "contradicted",
        "rank-orders-learning-at-one-rate": "supported",
        "rank-orders-forgetting-at-one-rate": "supported",
        "ten-times-the-rate": "contradicted",
        "forgetting-linear-in-loss": "supported",
    }


def test_its_effects_are_those_of_the_raw_scores(folder, claims):
    full, r256 = "full-lr0.003-*", "lora-r256-lr0.001-*"
    bits, kl = "target/bits_per_byte", "self_probe/kl"
    learned = mean(folder, r256, bits) - mean(folder, full, bits)
    assert claims["learns-less"]["effect"] == pytest.approx(learned)
    forgot = mean(folder, full, kl) - mean(folder, r256, kl)
    assert claims["forgets-less"]["effect"] == pytest.approx(forgot)
    r16, r64 = mean(folder, "lora-r16-lr0.003-*", kl), mean(folder, "lora-r64-lr0.001-*", kl)
    assert claims["rank-orders-forgetting"]["effect"] == pytest.approx(r64 - r16)


def test_every_verdict_is_printed_with_its_reason(printed, claims):
    assert f"{len(claims)} claims: 6 supported, 3 contradicted, 10 unresolved" in printed
    assert printed.count("would resolve it") == 10
    assert "5 settings" in printed


def test_the_same_from_python(folder, claims):
    table = score_card(paretune.load(folder))
    assert dict(zip(table["claim"], table["verdict"], strict=True)) == {
        name: one["verdict"] for name, one in claims.items()
    }
    assert [one.claim for one in paretune.claims(folder)] == list(claims)


def test_a_folder_without_a_study(tmp_path):
    with pytest.raises(paretune.UserError):
        paretune.claims(tmp_path)
