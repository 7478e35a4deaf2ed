"""Layers whose weight's gradient is added where it is kept, by what computes it.

Autograd makes a gradient first and adds it after, which for every matrix of a full arm reads two
more of its size and writes one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F

from paretune.model.compilation import repeated_blocks

_OPERATORS: Any = torch.library.Library("paretune", "FRAGMENT")  # type: ignore[no-untyped-call]
_OPERATORS.define("accumulating(Tensor x, Tensor weight, Tensor gradient) -> Tensor")
_OPERATORS.define(
    "accumulating_backward(Tensor grad, Tensor x, Tensor weight, Tensor(a!) gradient, "
    "bool needs_x) -> Tensor"
)


def add_gradients_in_place(model: torch.nn.Module) -> list[str]:
    """Let linear layers without a bias, and embeddings, add to their ``weight.grad`` themselves.

    It is to be there, and to stay where it is. However often a layer is used, every use adds its
    part; without gradients it is what it was. Other layers, the output head, and what else reads a
    weight, stay with autograd.

    Returns:
        Names of the layers that do so.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    within = {id(module) for block in repeated_blocks(model) for module in block.modules()}
    aliases: dict[int, torch.Tensor] = {}
    found: list[str] = []
    for name, module in model.named_modules():
        forward = _form(module)
        # In compiled blocks an operator may write to what it is given, but no other code
        unfit = module is head or (forward is _look_up and id(module) in within)
        if forward is not None and not unfit:
            own: Any = module
            if forward is _multiply:
                # The same memory with a version of its own: compiled code keeps it from the forward
                # to the backward pass, while other layers write to their parts of it. One for each
                # weight: the compiler takes two tensors for two places
                own.gradient = aliases.setdefault(id(own.weight), own.weight.grad.data)
            own.forward = MethodType(forward, own)
            found.append(name)
    return found


def _form(module: torch.nn.Module) -> Callable[[Any, torch.Tensor], torch.Tensor] | None:
    """How a layer of this kind goes forward; None for one that stays as it is."""
    if type(module) is torch.nn.Linear and module.bias is None:
        return _multiply
    plain = type(module) is torch.nn.Embedding and module.max_norm is None
    return _look_up if plain and not (module.sparse or module.scale_grad_by_freq) else None


def _look_up(module: Any, ids: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return F.embedding(ids, module.weight)
    vectors: torch.Tensor = _LookUp.apply(  # type: ignore[no-untyped-call]
        ids, module.weight, module.weight.grad, module.padding_idx
    )
    return vectors


class _LookUp(torch.autograd.Function):
    """An embedding's rows; their gradients go to few rows of a large matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: torch.Tensor,
        weight_VD: torch.Tensor,
        gradient_VD: torch.Tensor,
        padding: int | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.gradient, ctx.padding = gradient_VD, padding
        return F.embedding(ids, weight_VD)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, None, None]:
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            grad = grad.masked_fill((ids == ctx.padding)[..., None], 0)
        # On a GPU it sorts the rows first: the order of its sums does not depend on chance
        rows = grad.reshape(-1, grad.shape[-1]).to(ctx.gradient.dtype)
        ctx.gradient.index_put_((ids.flatten(),), rows, accumulate=True)
        return None, None, None, None


def _multiply(module: Any, x: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return F.linear(x, module.weight)
    x = x.to(module.weight.dtype)
    product: torch.Tensor = torch.ops.paretune.accumulating(x, module.weight, module.gradient)
    return product


@torch.library.impl(_OPERATORS, "accumulating", "CompositeExplicitAutograd")
def _product(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight)


def _product_fake(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.impl(_OPERATORS, "accumulating_backward", "CompositeExplicitAutograd")
def _product_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, needs_x: bool
) -> torch.Tensor:
    grad_TO = grad.to(weight.dtype).reshape(-1, grad.shape[-1])
    gradient.addmm_(grad_TO.T, x.reshape(-1, x.shape[-1]))
    return (grad_TO @ weight).view(x.shape) if needs_x else x.new_empty(0)


def _backward_fake(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, needs_x: bool
) -> torch.Tensor:
    return x.new_empty(x.shape if needs_x else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, ctx.gradient = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
    needs_x = ctx.needs_input_grad[0]
    # The gradient is written to between uses of one layer, which autograd forbids of what it saves
    grad_x = torch.ops.paretune.accumulating_backward(
        grad, *ctx.saved_tensors, ctx.gradient, needs_x
    )
    return grad_x if needs_x else None, None, None


torch.library.register_fake("paretune::accumulating", _product_fake, lib=_OPERATORS)
torch.library.register_fake("paretune::accumulating_backward", _backward_fake, lib=_OPERATORS)
torch.library.register_autograd(
    "paretune::accumulating", _differentiate, setup_context=_keep, lib=_OPERATORS
)
