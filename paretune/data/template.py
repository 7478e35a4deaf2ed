"""How a pair is written as tokens: the tokenizer's chat template, or plain question and answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paretune.data.rows import Pair
from paretune.data.tokens import encode, end_of_text
from paretune.errors import UserError

PLAIN_PROMPT = "Question: {prompt}\nAnswer:"
PLAIN_RESPONSE = " {response}"


def resolve(template: str, tokenizer: Any) -> str:
    """``chat`` or ``plain``; ``auto`` means the chat template where the tokenizer has one.

    Raises:
        UserError: ``chat`` is asked for and the tokenizer has no template.
    """
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has_one:
        raise UserError(
            "training.template: chat, but the base's tokenizer has no chat template. "
            "Set training.template: plain"
        )
    if template == "auto":
        return "chat" if has_one else "plain"
    return template


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Any, template: str
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt (as an answer would follow it) and of each response.

    A response ends in the end-of-text token, once. The two together are the tokens of the whole
    text unless the tokenizer joins the prompt's last letters with the response's first.

    Raises:
        UserError: a chat template that fails, or that writes a prompt in another way once an
            answer follows it.
    """
    chat = resolve(template, tokenizer) == "chat"
    written = [_chat(pair, tokenizer) if chat else _plain(pair) for pair in pairs]
    prompts = encode(tokenizer, [prompt for prompt, _ in written], special=chat)
    wholes = encode(tokenizer, [prompt + rest for prompt, rest in written], special=chat)
    end = end_of_text(tokenizer)
    encoded = []
    for (_, rest), prompt, whole in zip(written, prompts, wholes, strict=True):
        if whole[: len(prompt)] == prompt:
            response = whole[len(prompt) :]
        else:
            response = encode(tokenizer, [rest], special=chat)[0]
        # A template may write more after the end (a line break): the answer is over by then.
        if end in response:
            response = response[: response.index(end)]
        encoded.append((prompt, [*response, end]))
    return encoded


def _plain(pair: Pair) -> tuple[str, str]:
    return PLAIN_PROMPT.format(prompt=pair.prompt), PLAIN_RESPONSE.format(response=pair.response)


def _chat(pair: Pair, tokenizer: Any) -> tuple[str, str]:
    question = {"role": "user", "content": pair.prompt}
    answer = {"role": "assistant", "content": pair.response}
    try:
        prompt = tokenizer.apply_chat_template(
            [question], tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template([question, answer], tokenize=False)
    except Exception as error:  # templates are programs of their own and raise what they like
        raise UserError(
            f"the tokenizer's chat template failed on {pair.id}: {error}. "
            "Set training.template: plain"
        ) from error
    if not whole.startswith(prompt):
        raise UserError(
            f"the tokenizer's chat template writes the prompt of {pair.id} in another way once an "
            "answer follows it, so the response cannot be told apart. Set training.template: plain"
        )
    return prompt, whole[len(prompt) :]
