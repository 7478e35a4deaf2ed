"""``score`` and ``assess``: models made elsewhere, with the scores and statistics of studies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.analyse.changes import Change
from paretune.analyse.statistics import paired_difference
from paretune.errors import UserError
from paretune.evaluate.items import score
from paretune.model.load import location
from paretune.report.assess import verdict
from paretune.runner.assess import assess
from paretune.runner.score import asked_for, read_mirror, score_model, score_table
from paretune.study.config import Base

POCKET = location(Base(name="pocket"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents of winogrande, and of a task that shows learning."""
    folder = tmp_path_factory.mktemp("eval")
    rows = [
        {
            "sentence": f"He put the {a} on the {b} because the _ was {c}.",
            "option1": a,
            "option2": b,
            "answer": str(1 + (len(a) + len(c)) % 2),
        }
        for a, b in (("cup", "table"), ("hat", "chair"), ("book", "box"))
        for c in ("clean", "old", "there", "red")
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "winogrande-validation.jsonl").write_text(text)
    questions = [
        {"question": f"Is {n} even?", "passage": f"The number {n} is here.", "label": n % 2}
        for n in range(9)
    ]
    text = "".join(json.dumps(row) + "\n" for row in questions)
    (folder / "boolq-validation.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def mirror(files: Path) -> list[str]:
    return [
        f"allenai/winogrande={files}/winogrande-{{split}}.jsonl",
        f"aps/super_glue/boolq={files}/boolq-{{split}}.jsonl",
    ]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA made with PEFT that changes the pocket base much."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merged(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a whole model, merged by PEFT."""
    from peft import PeftModel

    folder = tmp_path_factory.mktemp("merged")
    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(POCKET).save_pretrained(folder)
    return folder


def test_an_adapter_scores_as_the_model_that_peft_merges(
    adapter: Path, merged: Path, mirror: list[str]
) -> None:
    asked = asked_for("", "winogrande", mirror, None, None, None, "auto")
    (plain,) = score_model("pocket", asked, device="cpu")
    (with_adapter,) = score_model("pocket", asked, adapter=adapter, device="cpu")
    (whole,) = score_model(str(merged), asked, device="cpu")
    assert with_adapter.value.tolist() == whole.value.tolist()
    assert with_adapter.value.tolist() != plain.value.tolist()
    shown = score_table([whole])
    assert f"winogrande/acc  {score(whole).value:.4f}" in shown
    assert "n 12" in shown


def test_assessment_of_two_checkpoints(
    adapter: Path, merged: Path, mirror: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = asked_for("boolq", "winogrande", mirror, None, None, None, "auto")
    adapter = shutil.copytree(adapter, tmp_path / adapter.name)  # it is changed below
    page = assess("pocket", [str(adapter), str(merged)], asked, out, device="cpu")
    changes = pd.DataFrame(json.loads((out / "assessment.json").read_text()))
    assert changes["metric"].tolist() == ["boolq/acc", "winogrande/acc"] * 2
    assert changes["side"].tolist() == ["target", "source"] * 2
    row = changes[(changes["model"] == merged.name) & (changes["side"] == "source")].iloc[0]
    items = [
        pd.read_parquet(out / where / "items" / "0" / "winogrande.acc.parquet")
        for where in ("base", f"arms/{merged.name}")
    ]
    expected = paired_difference(items[1], items[0], sign=-1.0)
    assert (row["change"], row["low"], row["high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    before, after = (frame["value"].to_numpy() for frame in items)
    assert row["lost"] == int(((before == 1) & (after == 0)).sum())
    assert row["gained"] == int(((before == 0) & (after == 1)).sum())
    assert np.isclose(row["change"], (row["lost"] - row["gained"]) / 12)
    text = page.read_text()
    for words in (adapter.name, merged.name, "winogrande/acc", "on the frontier"):
        assert words in text
    said = (out / "answer.txt").read_text().strip()
    assert said in text
    assert ("No change from the base is established" in said) == (changes["p"] >= 0.05).all()
    again = assess("pocket", [str(adapter), str(merged)], asked, out, device="cpu")
    assert again.read_text() == text
    lines = (out / "base" / "scores.jsonl").read_text().splitlines()
    assert len(lines) == 2, "what is scored already is not scored again"
    namesake = shutil.copytree(adapter, tmp_path / "elsewhere" / adapter.name)
    with pytest.raises(UserError, match="holds scores of another checkpoint called"):
        assess("pocket", [str(namesake)], asked, out, device="cpu")
    weights = adapter / "adapter_model.safetensors"
    held = weights.read_bytes()
    weights.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(UserError, match="changed since it was scored: adapter_model"):
        assess("pocket", [str(adapter)], asked, out, device="cpu")


def test_mistakes(mirror: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task is named"):
        asked_for("", " , ", mirror, None, None, None, "auto")
    with pytest.raises(UserError, match="write DATASET=PATH"):
        read_mirror(["Rowan/hellaswag"])
    asked = asked_for("", "winogrande", mirror, None, None, None, "auto")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="no adapter that fits this model"):
        score_model("pocket", asked, adapter=tmp_path, device="cpu")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="not empty and no assessment"):
        assess("pocket", ["pocket"], asked, tmp_path / "other", device="cpu")


def test_the_verdict_names_what_is_established_and_nothing_else() -> None:
    def change(model: str, side: str, value: float, p: float | None) -> Change:
        return Change(model, f"{side}/m", side, 0.5, 0.5, value, None, None, p, 0, 0, 9, None)

    assert verdict(
        [
            change("a", "target", 0.25, 0.01),
            change("a", "source", 0.125, 0.049),
            change("b", "target", -0.5, 0.001),
            change("b", "source", -0.25, 0.001),
            change("c", "target", 0.5, 0.05),
            change("c", "source", 0.5, None),
        ]
    ) == (
        "a learned target/m (0.250), forgot source/m (0.125); b became worse at target/m (0.500), "
        "became better at source/m (0.250); no other change has p below 0.05."
    )
    assert verdict([change("c", "target", 0.5, 0.2), change("c", "source", 0.5, 1.0)]) == (
        "No change from the base is established: none of 2 changes has p below 0.05."
    )


def test_what_is_wrong_is_said_before_anything_is_scored(tmp_path: Path) -> None:
    from paretune.cli.scoring import score as command

    with pytest.raises(UserError, match=r"a folder; give a file with --out, such as .*scores.json"):
        command("pocket", "boolq", out=tmp_path)
    with pytest.raises(UserError, match=r"no PEFT adapter here \(adapter_config.json is missing\)"):
        command("pocket", "boolq", adapter=tmp_path)
    with pytest.raises(UserError, match=r"^--tasks: the harness has no task 'bolq'"):
        command("pocket", "bolq")
