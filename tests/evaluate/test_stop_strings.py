"""Stop strings and cut prompts against lm-evaluation-harness's own Hugging Face model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from evaluate_models import Models, llama, tokenizer

from paretune.evaluate.decode.request import GenerationRequest
from paretune.evaluate.generate import generate
from paretune.evaluate.tasks.encode import Encoder

CONTEXT = 64
CONTEXTS = [
    "The cat",
    "def add(a, b):",
    "It was a cold day in April, and the clocks were striking thirteen. " * 3,
    "print(1)\n",
    "The dog ran",
    "a",
]
UNTIL = [["t", "\n"], [" th", "zz"], ["q", "on", "The"], []]


@pytest.mark.parametrize("until", UNTIL, ids=str)
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_answers_are_those_of_lm_eval(until, scale):
    """Long prompts are cut there too; every answer is cut at the first stop string."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = llama(3, vocabulary=288, scale=scale)
    own = copy.deepcopy(tokenizer())  # it gets a token for padding; other tests have the same one
    reference = HFLM(
        pretrained=model, tokenizer=own, batch_size=4, max_length=CONTEXT, device="cpu"
    )
    settings = {"until": list(until), "max_gen_toks": 24, "do_sample": False}
    asked = [
        Instance("generate_until", {}, (text, dict(settings, until=list(until))), index)
        for index, text in enumerate(CONTEXTS)
    ]
    expected = reference.generate_until(asked, disable_tqdm=True)

    encoder = Encoder(tokenizer(), model.config)
    encoder.max_length = CONTEXT
    prompts, cut = encoder.prompts(CONTEXTS, 24)
    assert cut
    requests = [GenerationRequest(prompt, 24, stop=tuple(until)) for prompt in prompts]
    [got] = generate(Models(model, rows=50), requests, tokenizer())
    assert [answer.text for [answer] in got] == expected
    for [answer] in got:
        assert answer.finish in ("stop", "length", "end")
        if answer.finish == "stop":
            whole = tokenizer().decode(answer.tokens.tolist())
            assert any(term in whole for term in until)
            before = tokenizer().decode(answer.tokens[:-1].tolist())
            assert not any(term in before for term in until), "it should have stopped earlier"


def test_text_stops_inside_a_token_and_across_tokens():
    model = llama(3, vocabulary=288)
    prompt = np.array(tokenizer().encode("The cat"), dtype=np.int64)
    [[[free]]] = generate(Models(model), [GenerationRequest(prompt, 24)], tokenizer())
    for start in range(0, len(free.text) - 3, 3):
        term = free.text[start : start + 3]
        request = GenerationRequest(prompt, 24, stop=(term,))
        [[[answer]]] = generate(Models(model), [request], tokenizer())
        assert answer.text == free.text[: free.text.index(term)]
        assert answer.finish == "stop"
        assert len(answer.tokens) <= len(free.tokens)
