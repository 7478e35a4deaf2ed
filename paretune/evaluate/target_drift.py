"""Divergence from the base on held-out target text: what later work found forgetting to follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from paretune.data.pairs import PairItem
from paretune.data.windows import Window
from paretune.evaluate.batches import ROW_TOKENS
from paretune.evaluate.drift import Reference, that_fit
from paretune.evaluate.items import ArmModel, Items, outcomes


class TargetDrift:
    """``target/kl`` and ``target/reverse_kl``: KL(base || arm) and KL(arm || base).

    Over the whole vocabulary at every token of windows of text, or of responses given their
    prompts; the first is the predictor of Shenfeld et al. (2025), RL's Razor. Where the base's
    distributions on all texts would not fit into memory, an even spread of them is scored.
    """

    def __init__(
        self,
        texts: Sequence[Window] | Sequence[PairItem],
        base: ArmModel,
        *,
        reverse: bool,
        row_tokens: int = ROW_TOKENS,
    ) -> None:
        scored = [
            len(text.tokens) - 1 if isinstance(text, Window) else len(text.response)
            for text in texts
        ]
        one_token = torch.zeros(1, 1, dtype=torch.int64, device=base.device)
        vocabulary = base.logits(one_token).shape[-1]
        self._texts = [texts[index] for index in that_fit(scored, vocabulary)]
        self._reverse = reverse
        self._reference = Reference(
            [
                text.tokens
                if isinstance(text, Window)
                else np.concatenate([text.prompt, text.response])
                for text in self._texts
            ],
            [1 if isinstance(text, Window) else len(text.prompt) for text in self._texts],
            row_tokens=row_tokens,
            reverse=reverse,
        )
        self._reference.attach(base)

    def score(self, arms: ArmModel) -> dict[str, list[Items]]:
        """Both metrics of every arm; value in nats summed over a text's tokens, weight the tokens.

        The reverse divergence only where it was asked for.
        """
        drift = self._reference.score(arms)
        found = {"target/kl": drift.forward}
        if self._reverse:
            found["target/reverse_kl"] = drift.reverse
        scored = self._reference.scored
        return {
            metric: outcomes(metric, self._texts, value, scored) for metric, value in found.items()
        }
