from __future__ import annotations

import copy
from typing import Any

import pytest
from data_helpers import END, tokenizer

from paretune.data.pairs import pair_items
from paretune.data.rows import Pair
from paretune.data.template import encode_pairs, resolve
from paretune.errors import UserError

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' %}<|endoftext|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PAIRS = [
    Pair("1", "g", "How many apples?", "seven"),
    Pair("2", "g", "Braces {x} and 日本", "👩‍🚀 {y}"),
]


def with_template(template: str | None) -> Any:
    other = copy.deepcopy(tokenizer())
    other.chat_template = template
    return other


def decode(ids: list[int]) -> str:
    return tokenizer().decode(ids, clean_up_tokenization_spaces=False)


def test_plain_pairs_are_question_and_answer_up_to_the_end_token() -> None:
    for pair, (prompt, response) in zip(
        PAIRS, encode_pairs(PAIRS, tokenizer(), "plain"), strict=True
    ):
        assert decode(prompt) == f"Question: {pair.prompt}\nAnswer:"
        assert decode(response) == f" {pair.response}{END}"
        # The tokens are those of the text as a whole, so that generation meets what was trained.
        whole = tokenizer().encode(f"Question: {pair.prompt}\nAnswer: {pair.response}")
        assert prompt + response[:-1] == whole


def test_the_chat_template_decides_where_a_response_starts() -> None:
    chat = with_template(CHAT)
    for pair, (prompt, response) in zip(PAIRS, encode_pairs(PAIRS, chat, "auto"), strict=True):
        assert decode(prompt) == f"[user]{pair.prompt}\n[assistant]"
        # The template writes a line break after the end token; the answer is over by then.
        assert decode(response) == f"{pair.response}{END}"
        rendered = chat.apply_chat_template(
            [{"role": "user", "content": pair.prompt}], tokenize=False, add_generation_prompt=True
        )
        assert prompt == chat.encode(rendered, add_special_tokens=False)


def test_a_template_without_an_end_token_gets_one() -> None:
    chat = with_template(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    prompt, response = encode_pairs(PAIRS[:1], chat, "chat")[0]
    assert decode(prompt + response) == f"user: How many apples?\nassistant: seven\n{END}"


def test_auto_takes_the_template_there_is() -> None:
    assert resolve("auto", with_template(CHAT)) == "chat"
    assert resolve("auto", with_template(None)) == "plain"
    assert resolve("plain", with_template(CHAT)) == "plain"


def test_chat_without_a_template_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"no chat template. Set training.template: plain"):
        resolve("chat", with_template(None))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('system first') }}", "failed on 1: system first"),
        ("{{ messages | length }}{{ messages[0].content }}", "in another way once an answer"),
    ],
)
def test_a_template_that_cannot_be_used_is_a_user_error(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode_pairs(PAIRS, with_template(template), "chat")


def test_pair_items_carry_the_response_and_its_bytes() -> None:
    items = pair_items(PAIRS, tokenizer(), "plain", count=5, seed=0, max_length=200)
    assert [item.id for item in items] == ["1", "2"]
    assert items[1].response_text == "👩‍🚀 {y}"
    assert items[1].n_bytes == len("👩‍🚀 {y}".encode())
    assert items[0].response[-1] == tokenizer().eos_token_id
    assert decode(items[0].prompt.tolist()).endswith("Answer:")


def test_pair_items_that_do_not_fit_are_not_chosen() -> None:
    long = Pair("3", "g", "why " * 50, "because")
    items = pair_items([*PAIRS, long], tokenizer(), "plain", count=5, seed=0, max_length=80)
    assert [item.id for item in items] == ["1", "2"]
    with pytest.raises(UserError, match="no pair fits"):
        pair_items([long], tokenizer(), "plain", count=5, seed=0, max_length=80)
