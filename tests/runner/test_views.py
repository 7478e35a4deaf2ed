"""What others see of a finished study: notebook, model card, comparison, report; end to end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from runner_helpers import small_study
from transformers import AutoModelForCausalLM

import paretune
from paretune import UserError
from paretune.cli import app
from paretune.runner.card import base_licence
from paretune.runner.ledger import Ledger
from paretune.runner.run import run
from paretune.study.config import Base

ROOT = Path(__file__).resolve().parents[2]
ARMS = """
  - {method: full, learning_rate: 1e-3}
  - {method: lora, rank: 4, learning_rate: 5e-3, seed: [0, 1]}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    run(small_study(folder, arms=ARMS, at="6ba, 12ba"), folder / "out", report=False)
    return folder / "out"


def lora(folder: Path) -> str:
    return next(s.arm for s in paretune.status(folder) if s.arm.startswith("lora"))


def call(*arguments: object) -> str:
    """What a command prints."""
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, [str(part) for part in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_cell_of_the_notebook_runs(done: Path, tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "notebooks" / "worked.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    shutil.copytree(done, tmp_path / "pocket-study")
    names: dict[str, object] = {}
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for number, cell in enumerate(cells):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    finally:
        os.chdir(before)
    assert len(names["results"]) == 3 * 7  # three metrics: the base, and three arms at two budgets
    assert {"frontier", "learning", "forgetting"} <= set(names["charts"])


def test_card_states_scores_settings_and_command(done: Path) -> None:
    arm = lora(done)
    text = paretune.card(done, arm)
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "peft"
    assert "lora" in head["tags"]
    results = paretune.tidy(paretune.load(done))
    row = results[(results["arm"] == arm) & (results["tokens"] == 768)]
    row = row[row["metric"] == "target/bits_per_byte"].iloc[0]
    line = next(line for line in text.splitlines() if line.startswith("| Bits per byte on held"))
    assert f"{row['value']:.3f}" in line
    assert f"{row['base_value']:.3f}" in line
    assert "over 2 seeds" in text
    assert "| rank | 4 |" in text
    assert f"paretune export small {arm}@768 --to exported" in text
    assert str(done) not in text
    assert str(Path.home()) + "/" not in text


def test_card_command_prints_or_writes(done: Path, tmp_path: Path) -> None:
    arm = lora(done)
    assert call("card", done, f"{arm}@384") == paretune.card(done, f"{arm}@384")
    out = tmp_path / "card.md"
    assert str(out) in call("card", done, arm, "--to", out)
    assert out.read_text() == paretune.card(done, arm)
    with pytest.raises(UserError, match="no score at that budget; there is 384, 768"):
        paretune.card(done, f"{arm}@9M")
    with pytest.raises(UserError, match="no such arm 'nonsense'"):
        paretune.card(done, "nonsense")


def test_exports_carry_their_card(done: Path, tmp_path: Path) -> None:
    arm = lora(done)
    paretune.export(done, arm, tmp_path / "adapter")
    paretune.export(done, arm, tmp_path / "merged", merged=True)
    adapter = (tmp_path / "adapter" / "README.md").read_text()
    merged = (tmp_path / "merged" / "README.md").read_text()
    assert adapter == paretune.card(done, arm)
    assert "PeftModel" in adapter
    assert "PeftModel" not in merged
    assert yaml.safe_load(merged.split("---")[1])["library_name"] == "transformers"


def test_loading_code_of_a_card_loads_the_export(done: Path, tmp_path: Path) -> None:
    paretune.export(done, lora(done), tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    names: dict = {}
    exec(code.replace("THIS_FOLDER", str(tmp_path / "adapter")), names)
    assert names["model"].peft_config["default"].r == 4
    # In the type in which it was scored, so that it answers as it did: as the merged model does
    paretune.export(done, lora(done), tmp_path / "merged", merged=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    row = names["tokenizer"]("def f():", return_tensors="pt")
    logits = names["model"](**row).logits
    torch.testing.assert_close(merged(**row).logits, logits, rtol=0, atol=1e-4)
    assert names["tokenizer"].decode(names["tokenizer"]("def f():")["input_ids"]) == "def f():"


def test_licence_of_a_base_is_read_from_its_card(tmp_path: Path) -> None:
    assert base_licence(Base(name=str(tmp_path))) is None
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\n# A base\n")
    assert base_licence(Base(name=str(tmp_path))) == "cc-by-4.0"
    (tmp_path / "README.md").write_text("license: not in a metadata block\n")
    assert base_licence(Base(name=str(tmp_path))) is None
    assert base_licence(Base(name="nobody/has-this-base")) is None


def test_a_report_gives_advice_anew_where_it_was_asked_for(done: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    paretune.advise(folder, forget_at_most=0.5)
    asked = json.loads((folder / "advice.json").read_text())
    (folder / "advice.json").write_text(json.dumps({**asked, "headline": "Of older scores"}))
    paretune.write_report(folder)
    assert json.loads((folder / "advice.json").read_text()) == asked
    assert "Of older scores" not in (folder / "report.html").read_text()


def test_comparison_of_two_studies(done: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(done, other)
    frozen = (other / "study.yaml").read_text().replace("batch_size: 2", "batch_size: 3")
    (other / "study.yaml").write_text(frozen)
    Ledger(other).set_facts(study=hashlib.sha256(frozen.encode()).hexdigest())
    page = tmp_path / "page.html"
    assert str(page) in call("compare", done, other, "--out", page)
    text = page.read_text()
    assert "small (out)" in text
    assert "small (other)" in text
    assert "training.batch_size" in text
    assert '"frontier-self_probe-kl"' in text
    with pytest.raises(UserError, match="two studies or more"):
        paretune.compare([done], page)
    with pytest.raises(UserError, match="given twice"):
        paretune.compare([done, done], page)
    with pytest.raises(UserError, match="no study here"):
        paretune.compare([done, tmp_path / "nothing"], page)
    with pytest.raises(UserError, match="no setting 'nonsense'"):
        paretune.compare([done, "paper:nonsense"], page)


def test_the_record_knows_what_arms_cost(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(done, folder)
    ledger = Ledger.open(folder)
    first, *rest = ledger.arms()
    ledger.note("gpu", "pace", arms=[first], measured_bytes=5_000)
    ledger.note("gpu", "pace", arms=[first], measured_bytes=4_000)
    ledger.note("gpu", "pace", arms="all", measured_bytes=9_000)  # not what a cohort writes
    ledger.note("gpu", "pace", arms=[first])  # a CPU's
    status = paretune.load(folder).status
    assert status[first]["peak_memory"] == 5_000
    assert not any("peak_memory" in status[arm] for arm in rest)
    for arm in ledger.arms():
        weights = list((folder / "arms" / arm / "checkpoints").rglob("*.safetensors"))
        assert status[arm]["checkpoint_bytes"] == max(file.stat().st_size for file in weights)


def test_report_command_writes_claims_and_pdf(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(done, folder)
    told = call("report", folder, "--pdf")
    assert told.startswith((folder / "answer.txt").read_text().splitlines()[0])
    assert told.rstrip().endswith("report.html")
    for name in ("frontier", "learning", "forgetting", "loss"):
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "Figure 2" in (folder / "figures" / "README.md").read_text()
    assert json.loads((folder / "claims.json").read_text())["claims"]
    assert "<h2>Claims</h2>" in (folder / "report.html").read_text()
