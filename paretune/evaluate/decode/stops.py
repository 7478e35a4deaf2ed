"""When an answer ends: end-of-text tokens, stop strings, the end of its first line, its length."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.evaluate.decode.request import Answer, Finish, GenerationRequest

# Tokens decoded before the ones that could complete a stop string: the start of a decoded stretch
# may lack a space or the first bytes of a character
MARGIN = 2


@dataclass(frozen=True)
class LineEnds:
    """Which tokens of a vocabulary end a line of text; [V + 1] each, the last for unknown tokens.

    Attributes:
        always: the token holds text and a newline after it.
        after_text: the token holds a newline, which ends a line once there is text before it.
        blank: the token holds nothing but white space.
    """

    always: NDArray[np.bool_]
    after_text: NDArray[np.bool_]
    blank: NDArray[np.bool_]

    @classmethod
    def of(cls, tokenizer: Any) -> LineEnds:
        """The line ends of a tokenizer's vocabulary."""
        texts = tokenizer.batch_decode(
            [[token] for token in range(len(tokenizer))],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        always = ["\n" in text.lstrip() for text in texts]
        after_text = ["\n" in text for text in texts]
        blank = [not text.strip() for text in texts]
        return cls(
            np.array([*always, False]), np.array([*after_text, False]), np.array([*blank, True])
        )

    def ends(self, token: int, has_text: bool) -> bool:
        """Whether a line that ``has_text`` before this token ends with it."""
        known = min(token, len(self.blank) - 1)
        return bool(self.always[known]) or (has_text and bool(self.after_text[known]))

    def is_text(self, token: int) -> bool:
        """Whether the token holds something other than white space."""
        return not self.blank[min(token, len(self.blank) - 1)]


@dataclass(frozen=True)
class Language:
    """A vocabulary as the ends of answers need it.

    Attributes:
        tokenizer: decodes answers.
        end_of_text: tokens that end any answer.
        line_ends: needed by requests that ask for a first line only.
    """

    tokenizer: Any
    end_of_text: frozenset[int]
    line_ends: LineEnds | None = None

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        requests: Sequence[GenerationRequest],
        end_of_text: Collection[int] | None = None,
        line_ends: LineEnds | None = None,
    ) -> Language:
        """What these requests need; the tokenizer's own end-of-text token where none are given."""
        ends = [tokenizer.eos_token_id] if end_of_text is None else end_of_text
        if line_ends is None and any(request.first_line for request in requests):
            line_ends = LineEnds.of(tokenizer)
        return cls(tokenizer, frozenset(ends), line_ends)

    def text(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """Decoded tokens, cut before each stop string in turn, as lm-evaluation-harness cuts."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        for term in stop:
            if term:
                text = text.split(term, 1)[0]
        return text


class Growing:
    """One answer while it grows; tokens after its end are ignored."""

    def __init__(self, request: GenerationRequest, language: Language) -> None:
        self.finish: Finish | None = None
        self._request = request
        self._language = language
        self._stop = tuple(term for term in request.stop if term)
        # A token holds at least one character, but for the first bytes of one
        self._window = max((len(term) for term in self._stop), default=0) + MARGIN
        self._has_text = False
        self._tokens: list[int] = []
        self._entropy: list[float] = []

    def extend(self, tokens: Sequence[int], entropy: Sequence[float] | None = None) -> bool:
        """Take the next tokens, -1 where logits were not numbers; returns whether it has ended."""
        watch = bool(self._stop) and self._holds_stop([*self._tokens[-self._window :], *tokens])
        for place, token in enumerate(tokens):
            if self.finish is not None:
                break
            self._add(token, watch, None if entropy is None else entropy[place])
        return self.finish is not None

    def _add(self, token: int, watch: bool, entropy: float | None) -> None:
        if token < 0:
            self.finish = "broken"
            return
        if entropy is not None:
            self._entropy.append(entropy)
        if token in self._language.end_of_text:
            self.finish = "end"
            return
        self._tokens.append(token)
        if self._ends_line(token) or (watch and self._stops()):
            self.finish = "stop"
        elif len(self._tokens) == self._request.max_new_tokens:
            self.finish = "length"

    def _ends_line(self, token: int) -> bool:
        if not self._request.first_line or self._language.line_ends is None:
            return False
        if self._language.line_ends.ends(token, self._has_text):
            return True
        self._has_text |= self._language.line_ends.is_text(token)
        return False

    def _stops(self) -> bool:
        """The last tokens tell whether a stop string may be complete; only all of them are sure."""
        return self._holds_stop(self._tokens[-self._window :]) and self._holds_stop(self._tokens)

    def _holds_stop(self, tokens: Sequence[int]) -> bool:
        known = [token for token in tokens if token >= 0]
        text = self._language.tokenizer.decode(known, skip_special_tokens=True)
        return any(term in text for term in self._stop)

    def answer(self, *, entropy: bool = False) -> Answer:
        """What there is now."""
        return Answer(
            np.array(self._tokens, dtype=np.int64),
            self._language.text(self._tokens, self._stop),
            self.finish or "length",
            np.array(self._entropy, dtype=np.float32) if entropy else None,
        )
