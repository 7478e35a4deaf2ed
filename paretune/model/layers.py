"""Which layers of a causal LM can carry adapters, and what they are for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

from paretune.errors import UserError

Kind = Literal["attention", "mlp", "other"]
_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "ffn", "feed_forward", "feedforward", "experts", "moe")


@dataclass(frozen=True)
class Layer:
    """A linear layer: its name and number in the model, its matrix [d_out, d_in], and its kind."""

    name: str
    index: int
    d_in: int
    d_out: int
    kind: Kind
    transposed: bool  # stored as [d_in, d_out], as GPT-2's Conv1D does


def linear_layers(model: torch.nn.Module) -> dict[str, Layer]:
    """Every linear layer but the output head, in the model's order.

    Works on a model on the meta device too. The kind is read from the names of the modules that
    hold the layer (``self_attn``, ``mlp``, ...), so no model family is known by name.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers: dict[str, Layer] = {}
    for name, module in model.named_modules():
        if module is head:
            continue
        if is_linear(module):
            d_out, d_in = module.weight.shape
        elif isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
        else:
            continue
        stored = isinstance(module, Conv1D)
        layers[name] = Layer(name, len(layers), d_in, d_out, kind_of(name), stored)
    return layers


def is_linear(module: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    """Whether a module is a linear layer and no more than that.

    A class of its own that inherits from ``torch.nn.Linear`` is tried: some write the same product
    in their way, as Falcon's does, while routers of experts give other outputs.
    """
    if type(module) is torch.nn.Linear:
        return True
    if not isinstance(module, torch.nn.Linear) or not module.weight.is_floating_point():
        return False
    weight, bias = module.weight.detach(), module.bias
    row = torch.linspace(-1, 1, module.in_features, device=weight.device, dtype=weight.dtype)[None]
    try:
        with torch.no_grad():
            expected, found = F.linear(row, weight, bias), module(row)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        return False
    return found.is_meta or torch.allclose(found, expected, rtol=1e-2, atol=1e-3)


def select(
    layers: dict[str, Layer], targets: str | Sequence[str], *, where: str = "targets"
) -> list[str]:
    """Names of the layers that ``targets`` stands for: all, attention, mlp, or names.

    A name matches a layer whose last part or whole path equals it, as in PEFT.

    Raises:
        UserError: nothing matches; the message lists the names there are.
    """
    endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
    if isinstance(targets, str):
        chosen = [n for n, layer in layers.items() if targets in ("all", layer.kind)]
        if not layers:
            raise UserError(
                f"{where}: this base has no linear layers besides its output head, so that LoRA "
                "has nothing to adapt; use arms of method full"
            )
        if not chosen:
            raise UserError(
                f"{where}: this base has no layer whose path tells that it is {targets}; "
                f"name them, for example targets: [{', '.join(endings[:4])}]"
            )
        return chosen
    for wanted in targets:
        if not any(_matches(name, wanted) for name in layers):
            raise UserError(
                f"{where}: no linear layer is called '{wanted}'; this base has {', '.join(endings)}"
            )
    return [name for name in layers if any(_matches(name, wanted) for wanted in targets)]


def check_rank(layers: dict[str, Layer], names: Iterable[str], rank: int, *, where: str) -> None:
    """Refuse a rank above the smaller side of a matrix: such an adapter is not low-rank.

    Raises:
        UserError: names the smallest matrix and the largest rank allowed.
    """
    smallest = min((layers[name] for name in names), key=lambda layer: min(layer.d_in, layer.d_out))
    limit = min(smallest.d_in, smallest.d_out)
    if rank > limit:
        raise UserError(
            f"{where}: rank {rank} is larger than the matrix {smallest.name} "
            f"({smallest.d_out} x {smallest.d_in}); use at most {limit}"
        )


def weight_of(module: Any) -> torch.Tensor:
    """A linear layer's matrix as [d_out, d_in], whichever way the module stores it."""
    weight: torch.Tensor = module.weight.detach()
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith("." + wanted)


def kind_of(name: str) -> Kind:
    """What a layer is for, by the names of the modules that hold it; the nearest one decides."""
    parents = name.lower().split(".")[:-1]
    for part in reversed(parents):
        if any(mark in part for mark in _ATTENTION):
            return "attention"
        if any(mark in part for mark in _MLP):
            return "mlp"
    return "other"
