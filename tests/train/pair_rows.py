"""Rows of pairs that a few words make, several pairs in a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paretune.data.blocks import Blocks
from paretune.data.pack import pack_pairs
from paretune.data.rows import Pair, RowCounts

ROW = 40
COLOURS = 20


def words() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of the pairs below, and for the template's two."""
    names = ["<end>", "Question:", "Answer:", *(f"c{i}" for i in range(COLOURS)), "then", "swap"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def colour_pairs(count: int, repeats: int = 1) -> list[Pair]:
    """Prompts of uneven length, answered by their first colours, in order or swapped.

    Args:
        repeats: the answer is given up to so many times over, so that rows differ in what counts.
    """
    draw = np.random.default_rng(0)
    pairs = []
    for i in range(count):
        colours = [f"c{c}" for c in draw.integers(0, COLOURS, draw.integers(2, 9))]
        swap = bool(draw.integers(2))
        prompt = " then ".join(colours) + (" swap" if swap else "")
        answer = colours[: draw.integers(1, 3)]
        answer = (answer[::-1] if swap else answer) * int(draw.integers(1, repeats + 1))
        pairs.append(Pair(str(i), str(i), prompt, " ".join(answer)))
    return pairs


def pair_blocks(pairs: list[Pair], folder: Path) -> Blocks:
    """Pairs packed into rows of ``ROW`` tokens."""
    counts = RowCounts("target.data", 0.01)
    pack_pairs(pairs, words(), "plain", folder, block_length=ROW, counts=counts)
    return Blocks(folder, "ift")
