"""The small study that faults strike: seconds long, with every kind of thing a ledger holds."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

STUDY = """
name: struck
base: ./base
regime: cpt
target:
  data: DATA
  heldout: {from: json, path: heldout.jsonl}
  items: 4
source:
  self_probe: {samples: 4, tokens: 16}
  texts:
    - {name: prose, data: {from: pocket-prose}, metrics: [cloze], items: 4}
training: {block_length: 32, batch_size: 2}
defaults: {schedule: {shape: trapezoid, warmup: 2ba}}
arms:
  - {method: lora, rank: [2, 4], learning_rate: 5e-3, lora_dropout: 0.1}
  - {method: full, learning_rate: 1e-3}
budgets: {at: [5ba, 10ba], mode: MODE}
checkpoints: {every_seconds: 0.03}
"""
LOCAL = "{from: json, path: rows.jsonl}"
HUB = "{from: hub, name: some/corpus}"
MODES = ("hot", "cooldown")


def rows(first: int, count: int) -> str:
    """Documents with something to learn."""
    lines = []
    for i in range(first, first + count):
        body = "".join(f"    value_{j} = {i} * {j} + {i * j}\n" for j in range(6))
        lines.append(json.dumps({"text": f"def function_{i}(x):\n{body}"}))
    return "\n".join(lines) + "\n"


def make_base(folder: Path) -> None:
    """A Llama of two narrow layers, random weights and the pocket base's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(str(resources.files("paretune.pocket") / "base"), folder)
    pocket = json.loads((folder / "config.json").read_text())
    same = {key: value for key, value in pocket.items() if key.endswith("token_id")}
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=pocket["vocab_size"],
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            **same,
        )
    ).save_pretrained(folder)


def write(folder: Path, mode: str, base: Path, *, hub: bool = False) -> None:
    """The study file and its data in ``folder``, which holds all that the study reads."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(base, folder / "base")
    text = STUDY.replace("MODE", mode).replace("DATA", HUB if hub else LOCAL)
    (folder / "study.yaml").write_text(text)
    (folder / "rows.jsonl").write_text(rows(0, 60))
    (folder / "heldout.jsonl").write_text(rows(1000, 20))
