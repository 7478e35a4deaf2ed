"""Decoding against transformers' own generate, and exact match of answers."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluate_models import VOCABULARY, Models, broken, llama, random_tokens, tokenizer

from paretune.data.pairs import PairItem
from paretune.evaluate.decode.request import GenerationRequest
from paretune.evaluate.decode.stops import LineEnds
from paretune.evaluate.exact_match import exact_match, first_line
from paretune.evaluate.generate import generate
from paretune.model.trainee import frozen

PROMPTS = [random_tokens(length, seed) for seed, length in enumerate([9, 3, 14, 9, 1, 6, 11])]


COUNT = 12


@functools.cache
def free(seed: int) -> list[list[int]]:
    return answers_of(llama(seed))


def answers_of(model) -> list[list[int]]:
    """transformers' greedy answers, one prompt at a time, that no token ends."""
    answers = []
    for prompt in PROMPTS:
        ids = torch.from_numpy(prompt)[None]
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=COUNT,
            min_new_tokens=COUNT,
            pad_token_id=0,
            eos_token_id=None,
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


def cut(answer: list[int], *ends: int) -> list[int]:
    places = [answer.index(end) for end in ends if end in answer]
    return answer[: min(places)] if places else answer


def some_end(*seeds: int) -> int:
    """A token that random models write at different places, to serve as the end-of-text token."""
    answers = [answer for seed in seeds for answer in free(seed)]
    places = {t: {a.index(t) for a in answers if t in a} for t in {t for a in answers for t in a}}
    return max(sorted(places), key=lambda token: len(places[token]))


def greedy(arms, count=COUNT, prompts=PROMPTS, **settings):
    """Tokens of every arm's one answer to each prompt."""
    requests = [GenerationRequest(prompt, count) for prompt in prompts]
    answers = generate(arms, requests, tokenizer(), **settings)
    return [[answer.tokens.tolist() for [answer] in of_arm] for of_arm in answers]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("rows", [1, 50])
def test_greedy_answers_are_those_of_transformers(seeds, rows):
    arms = Models(*(llama(seed) for seed in seeds), rows=rows)
    end = some_end(*seeds)
    got = greedy(arms, end_of_text=[end], row_tokens=9)
    expected = [[cut(answer, end) for answer in free(seed)] for seed in seeds]
    assert got == expected
    lengths = {len(answer) for of_arm in expected for answer in of_arm}
    assert len(lengths) > 2, "the test should see answers that end early"


def test_left_padded_batch_of_transformers_agrees_too_with_several_end_tokens():
    """The same prompts as one padded batch through generate."""
    model = llama(1)
    ends = [some_end(1), free(1)[0][5]]
    width = max(len(p) for p in PROMPTS)
    ids = torch.zeros(len(PROMPTS), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(PROMPTS):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, width - len(prompt) :] = 1
    out = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=COUNT,
        pad_token_id=0,
        eos_token_id=ends,
    )[:, width:].tolist()
    assert greedy(Models(model, rows=50), end_of_text=ends) == [[cut(row, *ends) for row in out]]


def test_a_base_with_learned_positions_and_the_real_model_view(tiny_gpt2):
    """GPT-2 counts positions from the left edge unless told: padded prompts must say where."""
    trainee = frozen(tiny_gpt2, torch.device("cpu"))
    trainee.rows = 50
    [got] = greedy(trainee.view(None), end_of_text=[VOCABULARY])
    assert got == answers_of(trainee.model)


def test_decoding_stops_when_all_rows_are_finished():
    model = llama(0)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token ties, and the first of them ends the text
    arms = Models(model, rows=50)
    assert greedy(arms, 30) == [[[]] * len(PROMPTS)]
    assert arms.passes == 1


def test_finished_rows_leave_the_batch():
    """Of eight requests one is long: the others' rows must not run beside it to its end."""
    rows = []

    class Counted(Models):
        def step(self, input_ids_KBS, **settings):
            rows.append(input_ids_KBS.shape[1])
            return super().step(input_ids_KBS, **settings)

    prompts = [random_tokens(6, seed) for seed in range(8)]
    lengths = [40, 3, 3, 3, 3, 2, 2, 2]
    requests = [GenerationRequest(p, n) for p, n in zip(prompts, lengths, strict=True)]
    arms = Counted(llama(0), llama(1), rows=50)
    got = generate(arms, requests, tokenizer(), end_of_text=[VOCABULARY])
    assert rows[0] == 8
    assert rows[4:] == [1] * 36
    for arm, of_arm in enumerate(got):
        alone = greedy(Models(llama(arm)), 40, prompts, end_of_text=[VOCABULARY])[0]
        for answer, length, [one] in zip(alone, lengths, of_arm, strict=True):
            assert one.tokens.tolist() == answer[:length]
            assert one.finish == "length"


def test_broken_arm_gives_no_answers_and_disturbs_none():
    requests = [GenerationRequest(prompt, 10) for prompt in PROMPTS]
    mixed = generate(Models(llama(0), broken(1), llama(2)), requests, tokenizer())
    assert [answer.finish for [answer] in mixed[1]] == ["broken"] * len(PROMPTS)
    alone = greedy(Models(llama(0), llama(2)), 10)
    for of_arm, other in ((mixed[0], alone[0]), (mixed[2], alone[1])):
        assert [answer.tokens.tolist() for [answer] in of_arm] == other


def test_a_request_that_cannot_be_answered_is_refused():
    good = GenerationRequest(PROMPTS[0], 5)
    for wrong in (
        {"prompt": np.zeros(0, np.int64)},
        {"max_new_tokens": 0},
        {"samples": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
    ):
        with pytest.raises(ValueError, match=r"at least one|lies in"):
            replace(good, **wrong)


class Tape:
    """A cache that holds which scripted row is where, and how far it is."""

    def __init__(self, rows: list[int]) -> None:
        self.rows, self.at = rows, 0

    def reorder_cache(self, index: torch.Tensor) -> None:
        self.rows = [self.rows[i] for i in index.tolist()]


class Scripted:
    """An ArmModel that writes given texts, one to a prompt, whatever it reads; one arm."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = [tokenizer().encode(text) for text in texts]
        self.count, self.device, self.rows = 1, torch.device("cpu"), 100

    def step(self, input_ids_KBS, *, past=None, **_):
        past = past or Tape(input_ids_KBS[0, :, -1].tolist())  # a prompt ends with its number
        logits = torch.zeros(1, input_ids_KBS.shape[1], input_ids_KBS.shape[2], 288)
        for row, number in enumerate(past.rows):
            text = self.texts[number - 1]
            logits[0, row, -1, text[past.at] if past.at < len(text) else 0] = 9.0
        past.at += 1
        return logits, past


ANSWERS = [
    ("42", "42", 1.0),
    (" 42 \n and then more", "42", 1.0),
    ("\n\n42\nrest", "42", 1.0),
    ("42", " 42\n", 1.0),
    ("421", "42", 0.0),
    ("", "42", 0.0),
    ("cat", "Cat", 0.0),
    ("é ü", "é ü", 1.0),
    ("42", "42\nbecause 40 + 2 = 42", 1.0),
]


def pairs(answers) -> list[PairItem]:
    return [
        PairItem(f"p{i}", "g", np.array([9] * (i % 3) + [i + 1]), np.array([1, 0]), wanted, 2)
        for i, (_, wanted, _) in enumerate(answers)
    ]


def test_answers_match_by_their_first_line():
    model = Scripted([written for written, _, _ in ANSWERS])
    [got] = exact_match(model, pairs(ANSWERS), tokenizer(), "target/exact_match", answer_tokens=24)
    assert got.value.tolist() == [right for _, _, right in ANSWERS]
    assert got.weight.tolist() == [1.0] * len(ANSWERS)
    assert (got.unit, got.higher_is_better, got.side) == ("accuracy", True, "target")


def test_a_line_of_text_ends_an_answer_and_blank_lines_do_not():
    texts = ["\n\n42\n" + "x" * 60, "7\n" + "y" * 60]
    requests = [GenerationRequest(np.array([i + 1]), 50, first_line=True) for i in range(2)]
    [got] = generate(Scripted(texts), requests, tokenizer())
    for [answer], text in zip(got, texts, strict=True):
        assert tokenizer().decode(answer.tokens.tolist()) == text[: text.rindex("\n") + 1]
        assert answer.finish == "stop"


def test_every_token_of_the_vocabulary_is_known_for_its_newlines():
    ends = LineEnds.of(tokenizer())
    for token in range(len(tokenizer())):
        text = tokenizer().decode([token], skip_special_tokens=True)
        assert ends.after_text[token] == ("\n" in text)
        assert ends.blank[token] == (text.strip() == "")
    assert not ends.always[-1]
    assert len(ends.blank) == 289


def test_the_longest_answer_is_the_limit():
    [[[answer]]] = generate(
        Scripted(["abcdefgh" * 9]), [GenerationRequest(np.array([1]), 5)], tokenizer()
    )
    assert (len(answer.tokens), answer.finish) == (5, "length")


def test_exact_match_of_a_broken_arm_is_undefined():
    class Broken(Scripted):
        def step(self, *args, **settings):
            logits, past = super().step(*args, **settings)
            return logits * float("nan"), past

    [got] = exact_match(
        Broken(["1", "2"]), pairs(ANSWERS[:2]), tokenizer(), "target/exact_match", answer_tokens=4
    )
    assert np.isnan(got.value).all()


def test_first_line_keeps_case_and_inner_space():
    assert first_line("  \n A  b \r\n c") == "A  b"
    assert first_line("") == ""
