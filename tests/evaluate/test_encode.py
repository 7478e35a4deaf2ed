"""Texts become the tokens that the tokenizer itself gives, by whatever way is fastest."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluate_models import tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from paretune.evaluate.tasks.encode import Encoder

CONFIG = SimpleNamespace(max_position_embeddings=64)
TEXTS = [
    "",
    "A man looks.",
    " it\n\n\tsings ",
    "<|endoftext|>x",
    "a<|endoftext|>b",
    "ß É 2024",
    "a b",
]


def beginning() -> PreTrainedTokenizerFast:
    """A tokenizer that begins each text with a token of its own."""
    made = copy.deepcopy(tokenizer())  # other tests have the same one
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return made


class Lower(PreTrainedTokenizerFast):
    """What it does to a text before its engine gets it, only it knows."""

    def __call__(self, text: Any, **settings: Any) -> Any:
        return super().__call__([each.lower() for each in text], **settings)


def lower() -> Lower:
    return Lower(tokenizer_object=tokenizer().backend_tokenizer, eos_token="<|endoftext|>")


@pytest.mark.parametrize("make", [tokenizer, beginning, lower])
@pytest.mark.parametrize("special", [None, True, False])
def test_tokens_are_the_tokenizers(make: Any, special: bool | None) -> None:
    own = make()
    found = Encoder(own, CONFIG).encode(TEXTS, special=special)
    assert set(found) == set(TEXTS)
    for text, tokens in found.items():
        begun = special is None and text.startswith("<|endoftext|>")
        adds = False if begun else special is not False
        expected = own([text], add_special_tokens=adds)["input_ids"][0]
        assert tokens.dtype == np.int64
        assert tokens.tolist() == expected, text


def test_the_engine_alone_is_used_where_it_gives_the_same_and_only_there() -> None:
    assert Encoder(tokenizer(), CONFIG)._backend is not None
    assert Encoder(beginning(), CONFIG)._backend is not None
    assert Encoder(lower(), CONFIG)._backend is None
