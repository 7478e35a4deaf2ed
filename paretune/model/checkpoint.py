"""A model that was made elsewhere, as scorers see it: a folder or name, with or without adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paretune.errors import UserError
from paretune.model.causal import check_causal
from paretune.model.flat import compute_type
from paretune.model.load import load_model
from paretune.model.trainee import Trainee, frozen, scoring_rows
from paretune.study.config import Base


def load_checkpoint(model: str, adapter: Path | None, device: torch.device) -> Trainee:
    """A causal LM for scoring; a PEFT adapter is merged into it in float32.

    Args:
        model: a folder, a name on the hub, or ``pocket``.
        adapter: a folder in PEFT's format.

    Raises:
        UserError: either cannot be read, or they do not fit each other.
    """
    base = Base(name=model)
    if adapter is None:
        trainee = frozen(base, device)
    else:
        merged = _merged(load_model(base, torch.device("cpu")), adapter)
        merged = merged.to(compute_type(device)).to(device).eval()
        check_causal(merged, device, model)
        trainee = Trainee(merged, [], [], [], None, device, base)
    trainee.rows = scoring_rows(device, 512)
    return trainee


def _merged(model: torch.nn.Module, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        return (
            PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().requires_grad_(False)
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{adapter}: no adapter that fits this model ({reason})") from error
