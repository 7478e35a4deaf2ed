"""Cloze: pick the true continuation of held-out text among four stretches of equal length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.data.cloze import ClozeItem
from paretune.evaluate.batches import ROW_TOKENS, batches
from paretune.evaluate.items import ArmModel, Items, outcomes
from paretune.evaluate.likelihood import scored_nats

CHANCE = 0.25


def cloze(
    arms: ArmModel, items: Sequence[ClozeItem], metric: str, *, row_tokens: int = ROW_TOKENS
) -> list[Items]:
    """Accuracy at choosing the option of highest summed log-likelihood; chance is 0.25.

    Options of an item have one length in tokens, so nothing is normalised. Of equally likely
    options the one of lowest index is chosen. An item where an arm's logits are not numbers has
    the outcome NaN.

    Returns:
        K outcomes; value 1 where the true continuation was chosen, else 0; weight 1.
    """
    value = choose(
        option_log_likelihoods(arms, items, row_tokens=row_tokens),
        np.array([item.answer for item in items]),
    )
    return outcomes(metric, items, value, np.ones(len(items)))


def choose(
    log_likelihood_KNO: NDArray[np.float64], answer_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """1 where the likeliest option is the answer, else 0; NaN where a likelihood is NaN: [K, N]."""
    right_KN: NDArray[np.float64] = (log_likelihood_KNO.argmax(-1) == answer_N).astype(np.float64)
    right_KN[np.isnan(log_likelihood_KNO).any(-1)] = np.nan
    return right_KN


@torch.no_grad()
def option_log_likelihoods(
    arms: ArmModel, items: Sequence[ClozeItem], *, row_tokens: int = ROW_TOKENS
) -> NDArray[np.float64]:
    """Log-likelihood in nats of each option given its item's context: [K, N, options].

    A context runs through the model once: its cache serves all of its options.
    """
    options = len(items[0].options) if items else 0
    nats = np.zeros((arms.count, len(items), options))
    shapes = sorted({(len(item.context), item.options.shape[1]) for item in items})
    for context, length in shapes:
        same = [
            i
            for i, t in enumerate(items)
            if (len(t.context), t.options.shape[1]) == (context, length)
        ]
        positions = context + options * length
        for batch in batches([positions] * len(same), arms, row_tokens):
            members = [same[index] for index in batch]
            nats[:, members] = -_option_nats(arms, [items[index] for index in members])
    return nats


def _option_nats(arms: ArmModel, items: Sequence[ClozeItem]) -> NDArray[np.float64]:
    """Nats [K, B, O] of the options of items whose contexts and options have one length."""
    context_BC = torch.from_numpy(np.stack([item.context for item in items]))
    options_BOL = torch.from_numpy(np.stack([item.options for item in items]))
    B, options, _ = options_BOL.shape
    # The last token of the context goes with the options, for its logits predict their first
    last_BO1 = context_BC[:, None, -1:].expand(B, options, 1)
    inputs_RL = torch.cat([last_BO1, options_BOL[:, :, :-1]], dim=2).flatten(0, 1)
    past = None
    if context_BC.shape[1] > 1:
        _, past = arms.step(_for_each_arm(context_BC[:, :-1], arms))
        rows = torch.arange(arms.count * B, device=arms.device).repeat_interleave(options)
        past.reorder_cache(rows)
    logits, _ = arms.step(_for_each_arm(inputs_RL, arms), past=past)
    targets_RL = options_BOL.flatten(0, 1)
    nats_KR = scored_nats(logits, targets_RL, torch.ones_like(targets_RL, dtype=torch.bool))
    result: NDArray[np.float64] = nats_KR.view(arms.count, B, options).numpy()
    return result


def _for_each_arm(tokens_BS: torch.Tensor, arms: ArmModel) -> torch.Tensor:
    return tokens_BS.to(arms.device).expand(arms.count, *tokens_BS.shape)
