"""Dropout of attention weights in a base: which modules apply it, and switching it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from paretune.errors import UserError


def check_attention_dropout(model: Any, base: str, *, where: str = "arms") -> None:
    """Refuse attention dropout where the base has none that is known.

    Works on a model on the meta device too.

    Args:
        base: how messages call the model.

    Raises:
        UserError: its configuration has no such rate, or no module of it knows one.
    """
    if not hasattr(model.config, "attention_dropout") or not _droppers(model):
        raise UserError(_told(base, where))


@torch.no_grad()
def check_it_drops(
    logits: Callable[[torch.Tensor], torch.Tensor], model: Any, device: torch.device, base: str
) -> None:
    """Refuse attention dropout that changes nothing: some attention leaves it out.

    Args:
        logits: of token ids [B, S], by ``model`` at the rate that it is to have.

    Raises:
        UserError: the logits are the same with it.
    """
    ids = (torch.arange(128, device=device) % int(model.config.vocab_size)).view(2, 64)
    plain = logits(ids)
    with dropping_attention(model, device, 0):
        dropped = logits(ids)
    if torch.equal(dropped, plain):
        raise UserError(_told(base, "arms"))


@contextmanager
def dropping_attention(model: torch.nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Within, attention weights are dropped at the configuration's rate, as ``seed`` draws them.

    Only attention modules enter training mode: other dropouts of a base stay off for all arms.
    """
    modules = _droppers(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for module in modules:
            module.training = True
        try:
            yield
        finally:
            for module in modules:
                module.training = False


def _told(base: str, where: str) -> str:
    return f"{where}: {base} has no attention dropout that can be switched on; remove it here"


def _droppers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Attention modules that know a rate, and the dropouts that some of them hold for it."""
    found = []
    for module in model.modules():
        own = getattr(module, "attention_dropout", None)
        if own is not None:
            found.append(module)
        if isinstance(own, torch.nn.Module):
            found.append(own)
    return found
