"""The adapted products as operators for compiled code.

The compiler sees one node, whose derivative is another, and fuses what lies around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from paretune.model.product import Dropout, EagerProduct, Products, Term, backward, forward


def adapted_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    count: int,
    terms: Sequence[Term],
) -> torch.Tensor:
    """x W0^T + bias, plus every term on its arms' rows: [K * B, ..., d_in] -> [..., d_out].

    Args:
        count: K, the arms folded into the first axis of ``x``.
    """
    if x.dtype != weight.dtype:
        x = x.to(weight.dtype)
    trained = [factor for term in terms for factor in (term.A, term.B)]
    if not torch.compiler.is_compiling():
        product: torch.Tensor = EagerProduct.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, count, terms, *trained
        )
        return product
    dropouts: list[torch.Tensor] = []
    for term in terms:
        dropouts += term.dropout or ()
    ys, _ = torch.ops.paretune.adapted_products(
        x,
        [weight],
        [] if bias is None else [bias],
        trained,
        [factor for term in terms for factor in (term.A_cast, term.B_cast)],
        [term.gamma_K11 for term in terms],
        dropouts,
        [term.gamma for term in terms],
        [term.first_arm for term in terms],
        [term.dropout is not None for term in terms],
        count,
    )
    return ys[0]  # type: ignore[no-any-return]


# Operators take flat lists, matrix by matrix and bank by bank within. Factors are passed twice: as
# float32 leaves, to which the gradients go, and as the casts that are multiplied. What is a bank's
# and not a matrix's (gammas, numbers, firsts, drops) is passed once. All ``hidden`` is one tensor.

_LISTS = (
    "Tensor[] casts, Tensor[] gammas, Tensor[] dropouts, "
    "float[] numbers, int[] firsts, bool[] drops, int count"
)
_OPERATORS: Any = torch.library.Library("paretune", "DEF")  # type: ignore[no-untyped-call]
_OPERATORS.define(
    "adapted_products(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] trained, "
    f"{_LISTS}) -> (Tensor[], Tensor)"
)
_OPERATORS.define(
    "adapted_products_backward(Tensor[] grads, Tensor x, Tensor[] weights, Tensor hidden, "
    f"bool needs_x, {_LISTS}) -> (Tensor, Tensor)"
)


def _products(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    casts: Sequence[torch.Tensor],
    gammas: Sequence[torch.Tensor],
    dropouts: Sequence[torch.Tensor],
    numbers: Sequence[float],
    firsts: Sequence[int],
    drops: Sequence[bool],
) -> Products:
    factors, masks = iter(casts), iter(dropouts)
    terms = []
    for _ in weights:
        own = []
        for gamma, number, first, drop in zip(gammas, numbers, firsts, drops, strict=True):
            A, B = next(factors), next(factors)
            dropout = Dropout(next(masks), next(masks), next(masks)) if drop else None
            own.append(Term(A, B, A, B, gamma, number, first, dropout))
        terms.append(own)
    return Products(weights, biases, terms)


def _hidden_sizes(x: torch.Tensor, products: Products, count: int) -> list[int]:
    """Values of each bank's hidden part."""
    vectors = x.numel() // x.shape[-1] // count
    ranks = [sum(term.A_cast.shape[2] for term in bank) for bank in products.banks]
    arms = [term.A_cast.shape[0] for term in products.terms[0]]
    return [k * vectors * rank for k, rank in zip(arms, ranks, strict=True)]


@torch.library.impl(_OPERATORS, "adapted_products", "CompositeExplicitAutograd")
def _forward_operator(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    trained: list[torch.Tensor],
    *lists: Any,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    ys, hidden = forward(x, _products(weights, biases, *lists[:-1]), lists[-1])
    return ys, torch.cat([h.flatten() for h in hidden]) if len(hidden) > 1 else hidden[0].flatten()


def _forward_fake(
    x: torch.Tensor, weights: list[torch.Tensor], biases: Any, trained: Any, *lists: Any
) -> tuple[list[torch.Tensor], torch.Tensor]:
    ys = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    products = _products(weights, biases, *lists[:-1])
    return ys, x.new_empty(sum(_hidden_sizes(x, products, lists[-1])))


@torch.library.impl(_OPERATORS, "adapted_products_backward", "CompositeExplicitAutograd")
def _backward_operator(
    grads: list[torch.Tensor],
    x: torch.Tensor,
    weights: list[torch.Tensor],
    hidden: torch.Tensor,
    needs_x: bool,
    *lists: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    count = lists[-1]
    products = _products(weights, [], *lists[:-1])
    parts = torch.split(hidden, _hidden_sizes(x, products, count))
    arms = [term.A_cast.shape[0] for term in products.terms[0]]
    vectors = x.numel() // x.shape[-1] // count
    shaped = [part.view(k, vectors, -1) for part, k in zip(parts, arms, strict=True)]
    own = [grad.to(weight.dtype) for grad, weight in zip(grads, weights, strict=True)]
    grad_x, trained = backward(own, x, products, shaped, count, needs_x=needs_x)
    return x.new_empty(0) if grad_x is None else grad_x, torch.cat([g.flatten() for g in trained])


def _backward_fake(
    grads: Any, x: torch.Tensor, weights: Any, hidden: Any, needs_x: bool, *lists: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    total = sum(factor.numel() for factor in lists[0])
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else x.new_empty(0),
        x.new_empty(total, dtype=torch.float32),
    )


def _keep(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[list[torch.Tensor], torch.Tensor]
) -> None:
    x, weights, biases, _, *lists = inputs
    casts, gammas, dropouts, ctx.numbers, ctx.firsts, ctx.drops, ctx.count = lists
    ctx.sizes = len(weights), len(casts), len(gammas), len(dropouts)
    ctx.biases = len(biases)
    ctx.needs_x = ctx.needs_input_grad[0]
    ctx.save_for_backward(x, output[1], *weights, *casts, *gammas, *dropouts)


def _differentiate(ctx: Any, grads: list[torch.Tensor | None], _: Any) -> tuple[Any, ...]:
    x, hidden, *kept = ctx.saved_tensors
    lists = []
    for size in ctx.sizes:
        lists.append(kept[:size])
        kept = kept[size:]
    weights, casts, gammas, dropouts = lists
    wholes = [
        x.new_zeros(*x.shape[:-1], weight.shape[0]) if grad is None else grad
        for grad, weight in zip(grads, weights, strict=True)
    ]
    grad_x, flat = torch.ops.paretune.adapted_products_backward(
        wholes,
        x,
        weights,
        hidden,
        ctx.needs_x,
        casts,
        gammas,
        dropouts,
        ctx.numbers,
        ctx.firsts,
        ctx.drops,
        ctx.count,
    )
    pieces = flat.split([factor.numel() for factor in casts])
    trained = [piece.view(factor.shape) for piece, factor in zip(pieces, casts, strict=True)]
    nothing: list[list[None]] = [[None] * size for size in ctx.sizes[1:]]
    return (
        grad_x if ctx.needs_x else None,
        [None] * len(weights),
        [None] * ctx.biases,
        trained,
        *nothing,
        None,
        None,
        None,
        None,
    )


torch.library.register_fake("paretune::adapted_products", _forward_fake, lib=_OPERATORS)
torch.library.register_fake("paretune::adapted_products_backward", _backward_fake, lib=_OPERATORS)
torch.library.register_autograd(
    "paretune::adapted_products", _differentiate, setup_context=_keep, lib=_OPERATORS
)
# What traced graphs call it
TARGETS = torch.ops.paretune.adapted_products, torch.ops.paretune.adapted_products.default
