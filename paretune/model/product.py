"""The product of a frozen matrix plus the low-rank updates of several arms, with its gradient.

Written out because autograd's own version slices, concatenates and casts every activation several
times, which costs more than the products. It has two doors: an autograd function for eager code,
and operators for compiled code, where the compiler sees one node and fuses what lies around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from paretune.model.dropout import masked


class Dropout(NamedTuple):
    """What a bank's dropout masks in one layer depend on; tensors, so that a graph can read them.

    Attributes:
        keys_K: int32, one key an arm, for this step and layer.
        rate_K: float32 rates.
        first: int32, one element: position of the piece's first vector in each arm's batch.
    """

    keys_K: torch.Tensor
    rate_K: torch.Tensor
    first: torch.Tensor


class Term(NamedTuple):
    """One bank's part in one layer: y_k += gamma_k (x_k A_k) B_k for its arms.

    Attributes:
        A, B: trained factors [k, d_in, r] and [k, r, d_out], float32.
        A_cast, B_cast: the same in the type of the product.
        gamma_K11: scaling of each arm, float32.
        gamma: the same as one number where all arms share it, which spares a kernel; else 0.
        first_arm: place of the bank's first arm in the pass.
        dropout: masks on x, or None.
    """

    A: torch.Tensor
    B: torch.Tensor
    A_cast: torch.Tensor
    B_cast: torch.Tensor
    gamma_K11: torch.Tensor
    gamma: float
    first_arm: int
    dropout: Dropout | None = None


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
    x = x.to(weight.dtype)
    trained = [factor for term in terms for factor in (term.A, term.B)]
    if torch.compiler.is_compiling():
        return _compiled(x, weight, bias, count, terms, trained)
    product: torch.Tensor = _AdaptedProduct.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, count, terms, *trained
    )
    return product


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    count: int,
    terms: Sequence[Term],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The product, and x_k A_k of each term (scaled by gamma)."""
    x_KND = x.reshape(count, -1, x.shape[-1])
    hidden = [_scaled_bmm(_dropped(x_KND[_rows(term)], term), term.A_cast, term) for term in terms]
    factors = [(h, term.B_cast) for h, term in zip(hidden, terms, strict=True)]
    return _plus_frozen(x, weight.T, bias, count, terms, factors), hidden


def _plus_frozen(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    count: int,
    terms: Sequence[Term],
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """x weight + bias, plus the product of each term's two factors on its rows."""
    shape = *x.shape[:-1], weight.shape[1]
    if not x.is_cuda:
        y = torch.matmul(x, weight) if bias is None else F.linear(x, weight.T, bias)
        for term, (left, right) in zip(terms, factors, strict=True):
            y.view(count, -1, shape[-1])[_rows(term)].baddbmm_(left, right)
        return y
    # On a GPU the small products come first: the big one then adds them while it computes
    y = x.new_empty(shape)
    y_KNO = y.view(count, -1, shape[-1])
    done = 0
    for term, (left, right) in zip(terms, factors, strict=True):
        rows = _rows(term)
        if rows.start < done:
            # A second term of the same arms, as PiSSA's have
            y_KNO[rows].baddbmm_(left, right)
            continue
        y_KNO[done : rows.start].zero_()
        torch.bmm(left, right, out=y_KNO[rows])
        done = rows.stop
    y_KNO[done:].zero_()
    y.view(-1, shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight)
    return y if bias is None else y.add_(bias)


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    count: int,
    terms: Sequence[Term],
    hidden: Sequence[torch.Tensor],
    *,
    needs_x: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Gradients of x (in its type) and of each A and B (float32)."""
    g_KNO = grad.reshape(count, -1, grad.shape[-1])
    x_KND = x.reshape(count, -1, x.shape[-1])
    grads: list[torch.Tensor] = []
    factors: list[tuple[Term, torch.Tensor]] = []
    dropped: list[tuple[Term, torch.Tensor]] = []
    for term, h_KNr in zip(terms, hidden, strict=True):
        rows = _rows(term)
        g = g_KNO[rows]
        grad_h = _scaled_bmm(g, term.B_cast.mT, term)
        grads.append(_float32_bmm(_dropped(x_KND[rows], term).mT, grad_h))
        grads.append(_float32_bmm(h_KNr.mT, g))
        (factors if term.dropout is None else dropped).append((term, grad_h))
    if not needs_x:
        return None, grads
    plain = [(grad_h, term.A_cast.mT) for term, grad_h in factors]
    grad_x = _plus_frozen(grad, weight, None, count, [term for term, _ in factors], plain)
    for term, grad_h in dropped:
        part = grad_x.view(count, -1, grad_x.shape[-1])[_rows(term)]
        part.add_(_dropped(torch.bmm(grad_h, term.A_cast.mT), term))
    return grad_x, grads


def _rows(term: Term) -> slice:
    return slice(term.first_arm, term.first_arm + term.gamma_K11.shape[0])


def _scaled_bmm(a: torch.Tensor, b: torch.Tensor, term: Term) -> torch.Tensor:
    if not term.gamma:
        product = torch.bmm(a, b)
        return (product * term.gamma_K11).to(product.dtype)
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return out.baddbmm_(a, b, beta=0, alpha=term.gamma)


def _dropped(x_KND: torch.Tensor, term: Term) -> torch.Tensor:
    # Masks are computed again in the backward pass instead of being kept
    return x_KND if term.dropout is None else masked(x_KND, *term.dropout)


def _float32_bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b in float32, without a rounding to bf16 on the way where the device can do it."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    if a.device.type == "cuda":
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a, b).float()


class _AdaptedProduct(torch.autograd.Function):
    """The product in eager code."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        count: int,
        terms: Sequence[Term],
        *trained: torch.Tensor,
    ) -> torch.Tensor:
        y, hidden = _forward(x, weight, bias, count, terms)
        ctx.save_for_backward(x, weight, *hidden)
        ctx.count, ctx.terms = count, terms
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight, *hidden = ctx.saved_tensors
        grad_x, grads = _backward(
            grad.to(weight.dtype),
            x,
            weight,
            ctx.count,
            ctx.terms,
            hidden,
            needs_x=ctx.needs_input_grad[0],
        )
        return grad_x, None, None, None, None, *grads


# Operators take flat lists. Factors are passed twice: as float32 leaves, to which the gradients go,
# and as the casts that are multiplied. A term without dropout has empty keys.


def _compiled(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    count: int,
    terms: Sequence[Term],
    trained: list[torch.Tensor],
) -> torch.Tensor:
    casts = [factor for term in terms for factor in (term.A_cast, term.B_cast)]
    gammas = [term.gamma_K11 for term in terms]
    dropouts: list[torch.Tensor] = []
    for term in terms:
        if term.dropout is not None:
            dropouts += list(term.dropout)
    numbers = [term.gamma for term in terms]
    firsts = [term.first_arm for term in terms]
    drops = [term.dropout is not None for term in terms]
    y, _ = torch.ops.paretune.adapted_product(
        x, weight, bias, trained, casts, gammas, dropouts, numbers, firsts, drops, count
    )
    return y  # type: ignore[no-any-return]


def _terms(
    casts: Sequence[torch.Tensor],
    gammas: Sequence[torch.Tensor],
    dropouts: Sequence[torch.Tensor],
    numbers: Sequence[float],
    firsts: Sequence[int],
    drops: Sequence[bool],
) -> list[Term]:
    terms = []
    left = list(dropouts)
    for i, gamma in enumerate(gammas):
        A, B = casts[2 * i], casts[2 * i + 1]
        dropout = None
        if drops[i]:
            dropout, left = Dropout(*left[:3]), left[3:]
        terms.append(Term(A, B, A, B, gamma, numbers[i], firsts[i], dropout))
    return terms


def _hidden_sizes(x: torch.Tensor, casts: Sequence[torch.Tensor], count: int) -> list[int]:
    vectors = x.numel() // x.shape[-1] // count
    return [A.shape[0] * vectors * A.shape[2] for A in casts[::2]]


_LISTS = (
    "Tensor[] casts, Tensor[] gammas, Tensor[] dropouts, "
    "float[] numbers, int[] firsts, bool[] drops, int count"
)
_OPERATORS: Any = torch.library.Library("paretune", "DEF")  # type: ignore[no-untyped-call]
_OPERATORS.define(
    f"adapted_product(Tensor x, Tensor weight, Tensor? bias, Tensor[] trained, {_LISTS})"
    " -> (Tensor, Tensor)"
)
_OPERATORS.define(
    "adapted_product_backward(Tensor grad, Tensor x, Tensor weight, Tensor hidden, bool needs_x, "
    f"{_LISTS}) -> (Tensor, Tensor)"
)


@torch.library.impl(_OPERATORS, "adapted_product", "CompositeExplicitAutograd")
def _product_operator(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    trained: list[torch.Tensor],
    casts: list[torch.Tensor],
    gammas: list[torch.Tensor],
    dropouts: list[torch.Tensor],
    numbers: list[float],
    firsts: list[int],
    drops: list[bool],
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    terms = _terms(casts, gammas, dropouts, numbers, firsts, drops)
    y, hidden = _forward(x, weight, bias, count, terms)
    return y, torch.cat([h.flatten() for h in hidden]) if len(hidden) > 1 else hidden[0].flatten()


def _product_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: Any, trained: Any, casts: Any, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    return y, x.new_empty(sum(_hidden_sizes(x, casts, rest[-1])))


@torch.library.impl(_OPERATORS, "adapted_product_backward", "CompositeExplicitAutograd")
def _backward_operator(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    hidden: torch.Tensor,
    needs_x: bool,
    casts: list[torch.Tensor],
    gammas: list[torch.Tensor],
    dropouts: list[torch.Tensor],
    numbers: list[float],
    firsts: list[int],
    drops: list[bool],
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    terms = _terms(casts, gammas, dropouts, numbers, firsts, drops)
    sizes = _hidden_sizes(x, casts, count)
    shaped = [
        h.view(term.A.shape[0], -1, term.A.shape[2])
        for h, term in zip(torch.split(hidden, sizes), terms, strict=True)
    ]
    grad_x, grads = _backward(
        grad.to(weight.dtype), x, weight, count, terms, shaped, needs_x=needs_x
    )
    nothing = x.new_empty(0)
    return nothing if grad_x is None else grad_x, torch.cat([g.flatten() for g in grads])


def _backward_fake(
    grad: torch.Tensor, x: torch.Tensor, weight: Any, hidden: Any, needs_x: bool, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    casts: list[torch.Tensor] = rest[0]
    total = sum(factor.numel() for factor in casts)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else x.new_empty(0),
        x.new_empty(total, dtype=torch.float32),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, weight, _, _, *lists = inputs
    casts, gammas, dropouts, ctx.numbers, ctx.firsts, ctx.drops, ctx.count = lists
    ctx.sizes = len(casts), len(gammas)
    ctx.needs_x = ctx.needs_input_grad[0]
    ctx.save_for_backward(x, weight, output[1], *casts, *gammas, *dropouts)


def _differentiate(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[Any, ...]:
    x, weight, hidden, *lists = ctx.saved_tensors
    n_casts, n_gammas = ctx.sizes
    casts, gammas = lists[:n_casts], lists[n_casts : n_casts + n_gammas]
    dropouts = lists[n_casts + n_gammas :]
    grad_x, flat = torch.ops.paretune.adapted_product_backward(
        grad,
        x,
        weight,
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
    grads = [piece.view(factor.shape) for piece, factor in zip(pieces, casts, strict=True)]
    nothing: list[list[None]] = [[None] * len(each) for each in (casts, gammas, dropouts)]
    return (grad_x if ctx.needs_x else None, None, None, grads, *nothing, None, None, None, None)


torch.library.register_fake("paretune::adapted_product", _product_fake, lib=_OPERATORS)
torch.library.register_fake("paretune::adapted_product_backward", _backward_fake, lib=_OPERATORS)
torch.library.register_autograd(
    "paretune::adapted_product", _differentiate, setup_context=_keep, lib=_OPERATORS
)
