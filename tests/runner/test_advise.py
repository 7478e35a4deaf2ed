"""Advice on the kept ledger of the english-30m study, from its folder to advice.json."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paretune.cli import app
from paretune.errors import UserError
from paretune.runner.advise import advice

ARCHIVE = Path(__file__).parents[2] / "docs/studies/english-30m-to-python/ledger.tar.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("advise")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(where, filter="data")
    return next(where.glob("*/study.yaml")).parent


def test_advice_is_written_and_said(folder: Path) -> None:
    done = CliRunner().invoke(app, ["advise", str(folder), "--forget-at-most", "1.5"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Take full lr 0.0003 at 4,014,080 tokens")
    assert "Its checkpoint was not kept" in done.output
    written = json.loads((folder / "advice.json").read_text())
    choice = written["choice"]
    assert choice["forgetting"] < 1.5
    assert choice["within"] > 0.95
    assert written["sure"] == "sure"
    # No point of the study that stays within the limit for sure learned more
    inside = advice(folder, forget_at_most=1.5)
    assert all(one.learning <= choice["learning"] for one in inside.rivals)


def test_another_metric_and_mistakes(folder: Path) -> None:
    found = advice(folder, metric="english_novels/cloze", forget_at_most=0.1)
    assert found.forgetting_metric == "english_novels/cloze"
    with pytest.raises(UserError, match="no scored metric of forgetting; there is self_probe/kl"):
        advice(folder, metric="target/bits_per_byte")
    with pytest.raises(UserError, match="--forget-at-most nan: give a number"):
        advice(folder, forget_at_most=float("nan"))
    with pytest.raises(UserError, match="is not a size"):
        advice(folder, memory="big")
