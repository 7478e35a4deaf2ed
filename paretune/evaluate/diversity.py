"""Several drawn answers to each prompt: how many are right, and how much they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import comb, nan
from typing import Any

import numpy as np

from paretune.data.pairs import PairItem
from paretune.evaluate.batches import ROW_TOKENS
from paretune.evaluate.decode.request import Answer, GenerationRequest
from paretune.evaluate.decode.stops import LineEnds
from paretune.evaluate.exact_match import answered_line, first_line
from paretune.evaluate.generate import generate
from paretune.evaluate.items import ArmModel, Items, outcomes
from paretune.evaluate.sandbox.code_eval import pass_at_k
from paretune.study.samples import Samples

# Characters of the pieces by which two answers are compared
PIECE = 3


def sampled_answers(
    arms: ArmModel,
    pairs: Sequence[PairItem],
    tokenizer: Any,
    settings: Samples,
    *,
    answer_tokens: int,
    line_ends: LineEnds | None = None,
    row_tokens: int = ROW_TOKENS,
) -> dict[str, list[Items]]:
    """Every metric of ``settings.metric_names()`` for each arm, one item a prompt, weight 1.

    All arms answer the same prompts with the same random numbers, which pairs them. An answer is
    right when its first line is the response's, as in exact match. NaN where an arm's logits are
    not numbers.
    """
    requests = [
        GenerationRequest(
            pair.prompt,
            answer_tokens,
            first_line=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
            samples=settings.count,
            seed=settings.seed,
        )
        for pair in pairs
    ]
    written = generate(
        arms, requests, tokenizer, line_ends=line_ends, entropy=True, row_tokens=row_tokens
    )
    value = {name: np.full((arms.count, len(pairs)), nan) for name in settings.metric_names()}
    for arm, of_arm in enumerate(written):
        for index, (answers, pair) in enumerate(zip(of_arm, pairs, strict=True)):
            if any(answer.finish == "broken" for answer in answers):
                continue
            texts = [answered_line(answer, tokenizer) for answer in answers]
            right = [text == first_line(pair.response_text) for text in texts]
            found = measures(texts, right, settings.pass_at)
            found["token_entropy"] = mean_entropy(answers)
            for name in value:
                value[name][arm, index] = found[name]
    return {
        name: outcomes(f"target/{name}", pairs, values, np.ones(len(pairs)))
        for name, values in value.items()
    }


def measures(
    texts: Sequence[str], passed: Sequence[bool], pass_at: Sequence[int] = ()
) -> dict[str, float]:
    """What the answers to one prompt show.

    Returns:
        ``pass_at_K`` for each K, the chance that one of K answers is right, estimated without bias
        from all n (Chen et al., 2021, equation 1); ``distinct``, the number of different answers,
        and of these ``distinct_pass`` and ``distinct_fail``, as Biderman et al. (2024, Figure 5)
        count them; ``similarity``, see :func:`mean_similarity`.
    """
    right = sum(passed)
    return {
        **{f"pass_at_{k}": pass_at_k(len(texts), right, k) for k in pass_at},
        "distinct": len(set(texts)),
        "distinct_pass": len({t for t, ok in zip(texts, passed, strict=True) if ok}),
        "distinct_fail": len({t for t, ok in zip(texts, passed, strict=True) if not ok}),
        "similarity": mean_similarity(texts),
    }


def mean_similarity(texts: Sequence[str]) -> float:
    """Mean over all pairs of answers of the Jaccard index of their character trigrams.

    1 where all answers are equal, 0 where no two share a trigram; an answer shorter than three
    characters is one piece. NaN for a single answer.
    """
    times = Counter(texts)
    pieces = {text: _pieces(text) for text in times}
    total = float(sum(comb(count, 2) for count in times.values()))
    for one, other in combinations(times, 2):
        union = len(pieces[one] | pieces[other])
        shared = len(pieces[one] & pieces[other]) / union if union else 1.0
        total += times[one] * times[other] * shared
    pairs = comb(len(texts), 2)
    return total / pairs if pairs else nan


def _pieces(text: str) -> set[str]:
    return {text[i : i + PIECE] for i in range(max(1, len(text) - PIECE + 1))}


def mean_entropy(answers: Sequence[Answer]) -> float:
    """Mean entropy of the next-token distribution over all tokens drawn, in nats.

    The distribution is the model's own, at temperature 1; the token that ends a text counts.
    """
    drawn = [answer.entropy for answer in answers if answer.entropy is not None]
    return float(np.concatenate(drawn).mean()) if drawn else nan
