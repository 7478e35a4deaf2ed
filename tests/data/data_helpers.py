"""A tiny byte-level tokenizer, tiny studies and files of rows, for the tests of paretune.data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from paretune.study.config import StudyConfig

END = "<|endoftext|>"
TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Question: How many apples are there?\nAnswer: seven of them are left in the box.",
    "def add(first, second):\n    return first + second\n",
]


@lru_cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 320 tokens; token 0 ends a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def study(
    data: dict[str, Any],
    *,
    regime: str = "cpt",
    at: Any = "1ep",
    heldout: Any = 0.2,
    items: int = 4,
    texts: Iterable[dict[str, Any]] = (),
    **training: Any,
) -> StudyConfig:
    """A study whose data are given and whose rest is small."""
    return StudyConfig.model_validate(
        {
            "name": "tiny",
            "base": "pocket",
            "regime": regime,
            "target": {"data": data, "heldout": heldout, "items": items},
            "source": {"texts": list(texts)},
            "training": {"block_length": 16, "batch_size": 2, **training},
            "arms": [{"method": "full", "learning_rate": 1e-3}],
            "budgets": {"at": at},
        }
    )


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentences(count: int, *, first: int = 0) -> list[dict[str, str]]:
    """Rows with distinct texts of a few lines."""
    return [
        {"text": f"Entry {n} of the log.\nThe ferry number {n * 7} came in at {n % 24} hours.\n"}
        for n in range(first, first + count)
    ]


def questions(count: int) -> list[dict[str, str]]:
    """Rows with distinct prompts."""
    return [{"prompt": f"What is {n} and one?", "response": str(n + 1)} for n in range(count)]
