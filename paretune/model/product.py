"""Products of frozen matrices plus the low-rank updates of several arms, with their gradient.

Written out because autograd's own version slices, concatenates and casts every activation several
times, which costs more than the products. Here is the arithmetic, and an autograd function for
eager code; compiled code enters by ``product_operator``.

Matrices that take the same input (an attention's queries, keys and values) can be one product: then
the small factors stand side by side, and the input is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


class Products(NamedTuple):
    """What frozen matrices and their terms give for one input.

    Attributes:
        weights: W0 of each matrix, [d_out, d_in].
        biases: of each matrix, or none at all.
        terms: of each matrix. Those of several matrices agree: the same banks in the same order.
    """

    weights: Sequence[torch.Tensor]
    biases: Sequence[torch.Tensor]
    terms: Sequence[Sequence[Term]]

    @property
    def banks(self) -> Iterator[Sequence[Term]]:
        """Each bank's terms, one a matrix."""
        return zip(*self.terms, strict=True)


def forward(
    x: torch.Tensor, products: Products, count: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Every product [K * B, ..., d_out], and each bank's x_k A_k (scaled by gamma), side by side.

    Args:
        x: [K * B, ..., d_in].
        count: K, the arms folded into the first axis of ``x``.
    """
    x_KND = x.reshape(count, -1, x.shape[-1])
    hidden: list[torch.Tensor] = []
    for bank in products.banks:
        own, first = x_KND[_rows(bank[0])], bank[0]
        if first.dropout is None:
            hidden.append(_scaled_bmm(own, _beside([term.A_cast for term in bank]), first))
        else:
            parts = [_scaled_bmm(_dropped(own, term), term.A_cast, term) for term in bank]
            hidden.append(_beside(parts))
    apart = [_apart(h_KNr, bank) for h_KNr, bank in zip(hidden, products.banks, strict=True)]
    ys = []
    for j, (weight, terms) in enumerate(zip(products.weights, products.terms, strict=True)):
        factors = [(parts[j], term.B_cast) for parts, term in zip(apart, terms, strict=True)]
        bias = products.biases[j] if products.biases else None
        ys.append(_plus_frozen(x, weight.T, bias, count, terms, factors))
    return ys, hidden


def backward(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    products: Products,
    hidden: Sequence[torch.Tensor],
    count: int,
    *,
    needs_x: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Gradients of x (in its type), and of A and B of each matrix's terms (float32).

    Args:
        grads: of every product.
        hidden: what :func:`forward` gave.
    """
    gs = [grad.reshape(count, -1, grad.shape[-1]) for grad in grads]
    x_KND = x.reshape(count, -1, x.shape[-1])
    of_factors: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    plain: list[tuple[Term, torch.Tensor, torch.Tensor]] = []
    dropped: list[tuple[Term, torch.Tensor]] = []
    for bank, h_KNr in zip(products.banks, hidden, strict=True):
        rows = _rows(bank[0])
        own = [g_KNO[rows] for g_KNO in gs]
        parts = [_scaled_bmm(g, term.B_cast.mT, term) for g, term in zip(own, bank, strict=True)]
        if bank[0].dropout is None:
            grad_h = _beside(parts)
            of_A = _apart(_float32_bmm(x_KND[rows].mT, grad_h), bank)
            plain.append((bank[0], grad_h, _beside([term.A_cast for term in bank])))
        else:
            of_A = [
                _float32_bmm(_dropped(x_KND[rows], term).mT, part)
                for term, part in zip(bank, parts, strict=True)
            ]
            dropped += zip(bank, parts, strict=True)
        of_B = [_float32_bmm(h.mT, g) for h, g in zip(_apart(h_KNr, bank), own, strict=True)]
        of_factors.append(list(zip(of_A, of_B, strict=True)))
    trained = [each for matrix in zip(*of_factors, strict=True) for pair in matrix for each in pair]
    if not needs_x:
        return None, trained
    factors = [(grad_h, A.mT) for _, grad_h, A in plain]
    first, *others = zip(grads, products.weights, strict=True)
    grad_x = _plus_frozen(*first, None, count, [term for term, _, _ in plain], factors)
    for grad, weight in others:
        grad_x.view(-1, x.shape[-1]).addmm_(grad.reshape(-1, grad.shape[-1]), weight)
    for term, grad_h in dropped:
        part = grad_x.view(count, -1, x.shape[-1])[_rows(term)]
        part.add_(_dropped(torch.bmm(grad_h, term.A_cast.mT), term))
    return grad_x, trained


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


def _rows(term: Term) -> slice:
    return slice(term.first_arm, term.first_arm + term.gamma_K11.shape[0])


def _beside(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Factors that end in their rank, as one."""
    return factors[0] if len(factors) == 1 else torch.cat(list(factors), dim=-1)


def _apart(beside: torch.Tensor, bank: Sequence[Term]) -> list[torch.Tensor]:
    """The other way: a view for each matrix."""
    return list(torch.split(beside, [term.A_cast.shape[-1] for term in bank], dim=-1))


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


class EagerProduct(torch.autograd.Function):
    """One matrix's product in eager code."""

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
        own = Products([weight], [] if bias is None else [bias], [terms])
        (y,), hidden = forward(x, own, count)
        ctx.save_for_backward(x, weight, *hidden)
        ctx.count, ctx.terms = count, terms
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight, *hidden = ctx.saved_tensors
        own = Products([weight], [], [ctx.terms])
        needs_x = ctx.needs_input_grad[0]
        grad_x, grads = backward(
            [grad.to(weight.dtype)], x, own, hidden, ctx.count, needs_x=needs_x
        )
        return grad_x, None, None, None, None, *grads
