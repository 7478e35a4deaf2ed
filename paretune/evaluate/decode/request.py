"""What is asked of a model that writes, and what comes back."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paretune.model.dropout import key

# Why an answer ended: end-of-text token, stop string or line, longest length, logits not numbers
Finish = Literal["end", "stop", "length", "broken"]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue, once or several times.

    Attributes:
        prompt: [P] token ids, at least one.
        max_new_tokens: longest answer, in tokens.
        stop: strings that end an answer; its text is cut before the first of them, as
            lm-evaluation-harness's ``until`` does.
        first_line: the answer also ends with its first line that holds text.
        temperature: 0 takes the likeliest token; above it, tokens are drawn from the softmax of
            the logits divided by it.
        top_p: draw among the likeliest tokens only: as few as reach this probability together.
        samples: answers to this prompt; they share the prompt's cache.
        seed: of the draws. A draw depends on seed, prompt, sample and position alone, so equal
            requests get equal answers, whatever else is in the batch, and all arms of a cohort draw
            with the same random numbers.

    Raises:
        ValueError: a value outside its range.
    """

    prompt: NDArray[np.int64]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    first_line: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.prompt) == 0:
            raise ValueError("a prompt needs at least one token")
        if self.max_new_tokens < 1 or self.samples < 1:
            raise ValueError("an answer needs at least one token, and a request one answer")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("a temperature is 0 or more, and top_p lies in (0, 1]")

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt) + self.max_new_tokens

    def key(self, sample: int) -> int:
        """What the draws of one sample hash, beside the position: a signed 32-bit number."""
        digest = zlib.crc32(np.ascontiguousarray(self.prompt, dtype=np.int64).tobytes())
        return key(self.seed, digest, sample)


@dataclass(frozen=True)
class Answer:
    """What one arm wrote.

    Attributes:
        tokens: [T] int64, without the end-of-text token; with the token that completed a stop.
        text: the decoded tokens without special ones, cut before the first stop string.
        finish: why it ended; ``broken`` where the arm's logits are not numbers.
        entropy: nats of the next-token distribution (temperature 1) at each token drawn, an
            end-of-text token included; None where it was not asked for.
    """

    tokens: NDArray[np.int64]
    text: str
    finish: Finish
    entropy: NDArray[np.float32] | None = None
