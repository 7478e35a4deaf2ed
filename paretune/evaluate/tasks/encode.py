"""Requests as tokens, exactly as the lm-evaluation-harness's ``hf`` backend makes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.errors import UserError
from paretune.evaluate.tasks.pack import Scored
from paretune.evaluate.tasks.portions import Pair, Portion, about_tokens, most_tokens, parted

# The backend's answer where neither model nor tokenizer knows its context's length
UNKNOWN_LENGTH = 2048


class Encoder:
    """A tokenizer with the rules of the harness around it.

    Args:
        end_of_text: tokens with which the model ends what it writes, beside the tokenizer's own.

    Attributes:
        max_length: tokens of context that the model takes.
    """

    def __init__(self, tokenizer: Any, model_config: Any, end_of_text: Iterable[int] = ()) -> None:
        from lm_eval.models.utils import resolve_max_length

        self.tokenizer = tokenizer
        self.max_length = resolve_max_length(model_config, tokenizer, default=UNKNOWN_LENGTH)
        self.end_of_text = frozenset({int(tokenizer.eos_token_id), *end_of_text})
        first = tokenizer.bos_token_id
        self.prefix = int(tokenizer.eos_token_id if first is None else first)
        self._prefix_text = tokenizer.decode(self.prefix)

    def encode(
        self, texts: Iterable[str], *, special: bool | None = None
    ) -> dict[str, NDArray[np.int64]]:
        """Tokens by text, each text encoded once; all of them in one call, which is fast.

        Args:
            special: whether the tokenizer adds its special tokens; by default it does as it is
                set up, but not to a text that begins with the beginning-of-text token already.
        """
        found: dict[str, NDArray[np.int64]] = {}
        unique = list(dict.fromkeys(texts))
        groups: dict[bool | None, list[str]] = {}
        for text in unique:
            begun = special is None and text.startswith(self._prefix_text)
            groups.setdefault(False if begun else special, []).append(text)
        for adds, group in groups.items():
            found |= zip(group, self._tokens(group, adds), strict=True)
        return found

    def _tokens(self, texts: list[str], adds: bool | None) -> list[NDArray[np.int64]]:
        if self._backend is None:
            return [np.array(ids, dtype=np.int64) for ids in self._by_tokenizer(texts, adds)]
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=adds is not False)
        return [np.array(one.ids, dtype=np.int64) for one in encoded]

    def _by_tokenizer(self, texts: list[str], adds: bool | None) -> list[list[int]]:
        settings = {} if adds is None else {"add_special_tokens": adds}
        encoded = self.tokenizer(texts, return_attention_mask=False, verbose=False, **settings)
        found: list[list[int]] = encoded["input_ids"]
        return found

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer's own engine, where it alone gives the same tokens; else None.

        What the tokenizer wraps around it (offsets, masks, lists of lists) takes a quarter of the
        time, on one core.
        """
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if not hasattr(backend, "encode_batch_fast"):
            return None
        tried = ["a b", " A1\n\n\tß ", f"{self._prefix_text} x", "x" + self._prefix_text]
        for adds in (None, True, False):
            own = self._by_tokenizer(tried, adds)
            alone = backend.encode_batch_fast(tried, add_special_tokens=adds is not False)
            if own != [one.ids for one in alone]:
                return None
        return backend if backend.truncation is None and backend.padding is None else None

    def portions(self, pairs: Sequence[Pair], first: int = 0) -> list[Portion]:
        """What ``pairs`` gives, in portions that are tokenized when they are first asked for.

        A portion with a text that may not fit the model's context is tokenized at once, so that
        what is cut or too long is known before anything is scored.

        Args:
            first: the number of the first pair among the requests of all portions.

        Raises:
            UserError: as ``pairs``; from a portion that is asked for, where a continuation is
                empty.
        """
        found = []
        for indices in parted(pairs):
            part = [pairs[index] for index in indices]
            numbers = [first + index for index in indices]
            make = partial(self.pairs, part)
            portion = Portion(numbers, make, most_tokens(part), about_tokens(part))
            if portion.longest > self.max_length:
                portion.tokenized()
            found.append(portion)
        return found

    def pairs(self, pairs: Sequence[Pair]) -> tuple[list[Scored], int]:
        """Contexts and continuations as token sequences, and how many were cut from the left.

        White space at the end of a context goes to its continuation. The two are encoded together
        and parted after as many tokens as the context alone has. An empty context is the
        beginning-of-text token (end-of-text where there is none). What exceeds the model's context
        is cut from the left.

        Raises:
            UserError: a continuation is longer than the model's context, or empty.
        """
        texts = [(context.rstrip(), context + continuation) for context, continuation in pairs]
        tokens = self.encode(
            text
            for each, (context, _) in zip(texts, pairs, strict=True)
            if context
            for text in each
        )
        alone = self.encode((after for context, after in pairs if not context), special=False)
        prefix = np.array([self.prefix], dtype=np.int64)
        found, cut = [], 0
        for (context, _), (stripped, whole) in zip(pairs, texts, strict=True):
            if context:
                before = tokens[stripped]
                after = tokens[whole][len(before) :]
                before = before if len(before) else prefix
            else:
                before, after = prefix, alone[whole]
                if len(after) and after[0] == self.prefix:
                    after = after[1:]
            if not 0 < len(after) <= self.max_length:
                raise UserError(
                    f"tasks: a continuation of {len(after)} tokens cannot be scored by a model "
                    f"with a context of {self.max_length} ({whole[-60:]!r})"
                )
            # One token more than the context holds, for the last one is only a target
            whole_tokens = np.concatenate([before, after])
            cut += len(whole_tokens) > self.max_length + 1
            found.append(Scored(whole_tokens[-(self.max_length + 1) :], len(after)))
        return found, cut

    def windows(self, text: str) -> list[Scored]:
        """A whole text, in windows of the context's length; each token is scored once.

        Raises:
            UserError: an empty text.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        tokens = self.encode([text])[text].tolist()
        pairs = get_rolling_token_windows(tokens, self.prefix, self.max_length, context_len=1)
        found = []
        for before, after in map(make_disjoint_window, pairs):
            whole = np.array([*before, *after], dtype=np.int64)
            found.append(Scored(whole[-(self.max_length + 1) :], len(after)))
        if not found:
            raise UserError("tasks: a text to score is empty")
        return found

    def prompts(
        self, prompts: Sequence[str], max_new_tokens: int
    ) -> tuple[list[NDArray[np.int64]], int]:
        """Prompts to continue as tokens, and how many were cut from the left to leave room.

        Raises:
            UserError: the longest answer leaves no room for a prompt.
        """
        room = self.max_length - max_new_tokens
        if room <= 0:
            raise UserError(
                f"tasks: answers of up to {max_new_tokens} tokens leave no room for a prompt in a "
                f"context of {self.max_length}; give a smaller generation_kwargs.max_gen_toks"
            )
        tokens = self.encode(prompts)
        cut = sum(len(tokens[prompt]) > room for prompt in prompts)
        return [tokens[prompt][-room:] for prompt in prompts], cut
