"""The pocket instruction study: a base learns word problems, and what it costs its English."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import paretune
from paretune.runner.ledger import Ledger
from paretune.study.recipes import read_recipe

SMALL_ARMS = """
arms:
  - method: full
    learning_rate: 1e-3
  - method: lora
    rank: 8
    learning_rate: 1e-3
budgets:
  at: [8k, 24k]
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table(folder: Path, metric: str) -> pd.DataFrame:
    """Values of a metric: arms by label, budgets in columns."""
    results = pd.read_csv(folder / "results.csv")
    rows = results[results["metric"] == metric]
    return rows.pivot_table(index="label", columns="tokens", values="value")


def answers(model_folder: Path, prompts: list[str]) -> list[str]:
    """First lines that transformers alone generates, prompt by prompt."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        ids = tokenizer(f"Question: {prompt}\nAnswer:", return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        found.append(text.strip().split("\n")[0].strip())
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_arms_learn_to_answer_and_the_score_is_what_transformers_generates(
    tmp_path: Path,
) -> None:
    recipe = read_recipe("pocket-ift").split("\narms:")[0]
    for whole, part in [("items: 64", "items: 8"), ("items: 128", "items: 64"), ("32,", "8,")]:
        assert whole in recipe
        recipe = recipe.replace(whole, part)
    study = paretune.parse_study(recipe + SMALL_ARMS, "pocket-ift.yaml")
    folder = paretune.run(study, tmp_path / "study")
    right = table(folder, "target/exact_match")
    assert right.loc["base", 0] == 0
    assert right.loc["full lr 0.001"].iloc[-1] > 0.08, "four times the best guess"
    bits = table(folder, "target/bits_per_byte")
    drift = table(folder, "self_probe/kl")
    for arm in ("full lr 0.001", "lora r8 lr 0.001"):
        first, last = bits.loc[arm].dropna()
        assert last < first < bits.loc["base", 0]
        assert drift.loc[arm].iloc[-1] > 0.05
    assert right.loc["lora r8 lr 0.001"].iloc[-1] < right.loc["full lr 0.001"].iloc[-1]
    assert drift.loc["lora r8 lr 0.001"].iloc[-1] < drift.loc["full lr 0.001"].iloc[-1]

    (full,) = (arm for arm in study.arms if arm.method == "full")
    _, tokens, model = paretune.export(folder, full.id, tmp_path / "model")
    items = paretune.load(folder).items(full.id, tokens, "target/exact_match").set_index("item")
    heldout = [json.loads(line) for line in (folder / "data/heldout.jsonl").open()]
    rows = [row for row in heldout if row["id"] in items.index]
    assert len(rows) == 64
    given = answers(model, [row["prompt"] for row in rows])
    assert any("=" in answer for answer in given)
    for row, answer in zip(rows, given, strict=True):
        assert items.loc[row["id"], "value"] == (answer == row["response"]), (row, answer)


@pytest.mark.slow
def test_the_demo_shows_a_trade_off_in_minutes(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "paretune", "demo", "--instruct"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "pocket-instruct"
    assert done.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert (folder / "report.html").stat().st_size > 100_000
    (run,) = Ledger(folder).runs()
    print(f"{seconds:.0f} s: {run['seconds']}")

    right = table(folder, "target/exact_match").drop(columns=0)
    arms = right.drop(index="base", errors="ignore")
    assert len(arms) == 8
    assert arms.shape[1] == 3
    assert sum("lora" in label for label in arms.index) == 6
    last = arms.iloc[:, -1]
    assert (last > arms.iloc[:, 0]).sum() >= 7, "arms go on learning"
    assert last.max() > 0.5
    assert last.max() - last.min() > 0.2, "arms differ"
    forgotten = table(folder, "self_probe/kl").drop(index="base").iloc[:, -1]
    assert forgotten.min() > 0.1
    assert forgotten.max() > 5 * forgotten.min()
    kept = table(folder, "prose/cloze")
    assert kept.drop(index="base").iloc[:, -1].min() < kept.loc["base", 0] - 0.15
    assert forgotten.idxmin() != last.idxmax(), "who forgets least is not who learns most"
