"""A base must not see the tokens that it is to predict: encoders, such as BERT, are refused.

transformers loads many of them as causal LMs all the same, and they attend in both directions: what
follows a token would tell it, in training and in every score.
"""

from __future__ import annotations

from typing import Any

import torch

from paretune.errors import UserError

_SAME, _CHANGED = 8, 4  # tokens of two rows that agree, and that differ after these
# How far logits may be apart before the rows differ, in units of their spread: rounding alone
_EXACT, _ROUNDED = 1e-3, 0.15


def refuse_encoder(model: torch.nn.Module, base: str) -> None:
    """Refuse a model whose attention says of itself that it is not causal, in every layer.

    Works on a model on the meta device too. Not every model says so: see :func:`check_causal`.

    Args:
        base: how messages call the model.

    Raises:
        UserError: it is an encoder.
    """
    told = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    if told and not any(told):
        raise UserError(_told(base))


@torch.no_grad()
def check_causal(model: Any, device: torch.device, base: str) -> None:
    """Refuse a model whose logits change with the tokens after them; two short rows are tried.

    Raises:
        UserError: they do.
    """
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    ids = torch.arange(_SAME + _CHANGED, device=device)[None] % vocabulary
    other = ids.clone()
    other[:, _SAME:] = (ids[:, _SAME:] + 1) % vocabulary
    a, b = (model(input_ids=row).logits[:, :_SAME].float() for row in (ids, other))
    apart = float(((a - b) / b.std(-1, keepdim=True)).square().mean().sqrt())
    # A model without numbers, as of a diverged run, says nothing
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    if apart > (_EXACT if exact else _ROUNDED):
        raise UserError(_told(base))


def _told(base: str) -> str:
    return (
        f"base: {base} sees the tokens that follow, as encoders such as BERT do, so it cannot "
        "learn to predict them; give a causal LM"
    )
