"""Mistakes that only base and data reveal, with their messages; docs/mistakes.md shows them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runner_helpers import write_text_rows
from transformers import AutoTokenizer

import paretune
from paretune import UserError
from paretune.model.load import location
from paretune.study.config import Base

GOOD = """\
name: mine
base: pocket
regime: cpt
target:
  data: {from: json, path: rows.jsonl}
  items: 4
training: {block_length: 32, batch_size: 2}
budgets: {at: [10ba, 20ba]}
arms:
  - method: full
    learning_rate: 1e-3
  - method: lora
    rank: 4
    learning_rate: 1e-3
"""

# What is wrong, the line that is changed, what it is changed to, and the message
LATE = [
    (
        "a rank larger than a matrix",
        "    rank: 4",
        "    rank: [4, 256]",
        "line 13: arms[1].rank: rank 256 is larger than the matrix "
        "model.layers.0.self_attn.q_proj (192 x 192); use at most 192",
    ),
    (
        "layers that the base does not have",
        "    rank: 4",
        "    rank: 4\n    targets: [q_proj, c_attn]",
        "line 14: arms[1].targets: no linear layer is called 'c_attn'; this base has down_proj, "
        "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    ),
    (
        "biases of a base that has none",
        "    rank: 4",
        "    rank: 4\n    bias: all",
        "line 14: arms[1].bias: this base has no biases; leave bias out",
    ),
    (
        "a quantised base and full finetuning",
        "base: pocket",
        "base: {name: pocket, quantise: nf4}",
        "line 10: arms[0].method: full finetuning needs the base's own weights, which "
        "base.quantise rounds; leave out one of the two",
    ),
    (
        "a sharded base under an arm that needs whole weights",
        "training: {block_length: 32, batch_size: 2}\nbudgets: {at: [10ba, 20ba]}\narms:\n"
        "  - method: full\n",
        "training: {block_length: 32, batch_size: 2, devices_per_cohort: 2}\n"
        "budgets: {at: [10ba, 20ba]}\narms:\n  - method: full\n    attention_dropout: 0.1\n",
        "line 11: arms[0].attention_dropout: attention dropout needs whole weights, and "
        "training.devices_per_cohort shards the base; leave out one of the two",
    ),
    (
        "a budget beyond the data",
        "budgets: {at: [10ba, 20ba]}",
        "budgets: {at: [10ba, 5M]}",
        "line 8: budgets.at: 5M takes 78125 steps of 64 tokens, and one pass over the training "
        "data gives ",
    ),
    (
        "two budgets on one step",
        "budgets: {at: [10ba, 20ba]}",
        "budgets: {at: [630, 640]}",
        "line 8: budgets.at: 630 and 640 both end at step 10 (64 tokens a step, ",
    ),
    (
        "cooldown branches of a schedule that cannot be cut short",
        "budgets: {at: [10ba, 20ba]}",
        "budgets: {at: [10ba, 20ba], mode: cooldown}",
        "line 8: budgets.mode: cooldown needs a schedule that can be cut short; set the arm's "
        "schedule to constant, trapezoid or inverse_sqrt",
    ),
    (
        "a branch that cools down before the warm-up is over",
        "budgets: {at: [10ba, 20ba]}",
        "budgets: {at: [10ba, 20ba], mode: cooldown}\n"
        "defaults: {schedule: {shape: trapezoid, warmup: 9ba}}",
        "line 8: budgets.at: the branch to the budget at step 10 cools down from step 8, but "
        "warm-up takes 9 steps; shorten the schedule's warm-up",
    ),
    (
        "a task that the lm-evaluation-harness does not have",
        "training: {block_length: 32, batch_size: 2}",
        "source: {tasks: [{name: helaswag, metrics: [acc]}]}\n"
        "training: {block_length: 32, batch_size: 2}",
        "line 7: source.tasks[0]: the harness has no task 'helaswag'; did you mean hellaswag?",
    ),
    (
        "a folder that is not a model",
        "base: pocket",
        "base: .",
        "line 2: base: ",
    ),
    (
        "blocks longer than the base's context",
        "training: {block_length: 32, batch_size: 2}",
        "training: {block_length: 1024, batch_size: 2}",
        "line 7: training.block_length: 1024 tokens are more than the base reads at once; use at "
        "most 512 (max_position_embeddings in its config.json)",
    ),
    (
        "a self-probe longer than the base's context",
        "training: {block_length: 32, batch_size: 2}",
        "source: {self_probe: {tokens: 1024}}\ntraining: {block_length: 32, batch_size: 2}",
        "line 7: source.self_probe.tokens: 1024 tokens are more than the base reads at once; use "
        "at most 512 (max_position_embeddings in its config.json)",
    ),
    (
        "a warm-up longer than the run",
        "budgets: {at: [10ba, 20ba]}",
        "budgets: {at: [10ba, 20ba]}\ndefaults: {schedule: {warmup: 500ba}}",
        "line 8: budgets.at: the run to step 20 ends before its warm-up of 500 steps does; "
        "shorten the schedule's warm-up",
    ),
    (
        "less data than a batch",
        "training: {block_length: 32, batch_size: 2}",
        "training: {block_length: 512, batch_size: 999}",
        "line 5: target.data: ",
    ),
]


@pytest.mark.parametrize("case", LATE, ids=[case[0] for case in LATE])
def test_message(case: tuple[str, str, str, str], tmp_path: Path) -> None:
    _, old, new, message = case
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    (tmp_path / "study.yaml").write_text(text)
    write_text_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UserError) as caught:
        paretune.plan(tmp_path / "study.yaml")
    shown = str(caught.value).removeprefix(f"{tmp_path / 'study.yaml'}, ")
    assert shown.startswith(message), shown


def test_a_source_text_too_short_for_its_metric_is_found_by_the_plan(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("A short note.")
    write_text_rows(tmp_path / "rows.jsonl")
    text = "{name: notes, data: {from: text, path: note.txt}, metrics: [cloze]}"
    (tmp_path / "study.yaml").write_text(f"{GOOD}source:\n  texts:\n    - {text}\n")
    with pytest.raises(UserError, match=r"line 16: source\.texts\.notes: the texts are too short"):
        paretune.plan(tmp_path / "study.yaml")


def test_tokens_that_the_model_has_no_embedding_for(tmp_path: Path) -> None:
    """As after tokens were added to a tokenizer, and the model was left as it was."""
    shutil.copytree(location(Base(name="pocket")), tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    tokenizer.add_special_tokens({"eos_token": "<|new|>"})
    tokenizer.save_pretrained(tmp_path / "grown")
    (tmp_path / "study.yaml").write_text(GOOD.replace("base: pocket", "base: ./grown"))
    write_text_rows(tmp_path / "rows.jsonl")
    told = r"line 2: base: the tokenizer of .* gives the token 2048 \('<\|new\|>'\).* 2,048 tokens"
    with pytest.raises(UserError, match=told):
        paretune.plan(tmp_path / "study.yaml")


def test_the_file_itself_is_good(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(GOOD)
    write_text_rows(tmp_path / "rows.jsonl")
    planned = paretune.plan(tmp_path / "study.yaml")
    assert planned.budgets == (640, 1280)
    assert [len(cohort.arms) for cohort in planned.plan.cohorts] == [1, 1]
    lora = next(arm_id for arm_id in planned.arms if arm_id.startswith("lora"))
    per_layer = 4 * (192 + 192) + 3 * (192 + 512)
    assert planned.trained[lora] == 4 * 4 * per_layer
