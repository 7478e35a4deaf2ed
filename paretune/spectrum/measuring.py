"""What is measured of one matrix of a base and of the models tuned from it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from paretune.errors import UserError
from paretune.spectrum.adapters import Adapter
from paretune.spectrum.directions import BaseDirections
from paretune.spectrum.matrices import Matrix
from paretune.spectrum.measures import row
from paretune.spectrum.singular import Spectrum, from_gram, gram, singular_values
from paretune.spectrum.solvers import Pending, Solver
from paretune.spectrum.weights import Weights


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        delta_only: the update alone; W0 and W are then not looked at.
        vectors: also the measures that need singular vectors (several times the work).
        top: leading directions in which angles and intruders are sought.
        threshold: a direction is an intruder below this absolute cosine.
        exact: the float64 SVD for every matrix, however slow.
    """

    delta_only: bool = False
    vectors: bool = False
    top: int = 10
    threshold: float = 0.5
    exact: bool = False


@dataclass(frozen=True)
class Tuned:
    """A tuned model: its name for the caller, and its weights or its adapter.

    ``names`` maps the base's tensors to those of the weights; an adapter needs none.
    """

    key: Hashable
    source: Weights | Adapter
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The measures of one matrix of one tuned model, and the singular values behind them."""

    key: Hashable
    row: dict[str, Any]
    values: dict[str, torch.Tensor]


class MeasuredBase:
    """W0 of one matrix, measured once, and what follows for each tuned model."""

    def __init__(
        self,
        matrix: Matrix,
        W0: torch.Tensor,
        weights: Weights,
        options: Options,
        solver: Solver,
    ) -> None:
        self.matrix = matrix
        self.W0 = W0
        self.options = options
        self.solver = solver
        self.directions: BaseDirections | None = None
        self.pending: Pending | None = None
        self._spectrum: Spectrum | None = None
        if not bool(torch.isfinite(W0).all()):
            raise UserError(_not_finite(weights, matrix.tensor))
        if options.vectors:
            self.directions = BaseDirections(matrix, W0)
            self.pending = _known(self.directions.own.spectrum)
        elif not options.delta_only:
            self.pending = self.solve(W0)

    def spectrum(self) -> Spectrum | None:
        """That of W0, once it is solved; None where only updates are looked at."""
        if self._spectrum is None and self.pending is not None:
            self._spectrum = self.resolved(self.pending, self.W0)
        return self._spectrum

    def coming(self, one: Tuned, W: torch.Tensor, factors: Spectrum | None) -> Coming:
        """Begin with one tuned model's W; ``factors``: the update's spectrum, where known."""
        matrix, options = self.matrix, self.options
        if not bool(torch.isfinite(W).all()):
            assert isinstance(one.source, Weights)
            raise UserError(_not_finite(one.source, one.names[matrix.tensor]))
        measures: dict[str, Any] = {}
        tuned, delta = None, _known(factors) if factors is not None else None
        if self.directions is not None:
            measures, of_W, of_D = self.directions.measures(W, options.top, options.threshold)
            tuned, delta = _known(of_W), delta or _known(of_D)
        elif not options.delta_only:
            tuned = self.solve(W)
        if delta is None:
            delta = self.solve(W, self.W0)
        return Coming(self, one.key, W, measures, tuned, delta)

    def solve(self, W: torch.Tensor, minus: torch.Tensor | None = None) -> Pending:
        """Ask for the singular values of W, or of W - minus."""
        if self.options.exact:
            given_up = Pending()
            given_up.set(None)
            return given_up
        return self.solver.add(gram(W, minus))

    def resolved(
        self, pending: Pending, W: torch.Tensor, minus: torch.Tensor | None = None
    ) -> Spectrum:
        """A spectrum of the Gram route if that resolves all values, else that of the exact SVD."""
        found = pending.spectrum
        if found is None and not self.options.exact:
            found = from_gram(gram(W, minus))
        if found is not None and not found.unresolved and not self.options.exact:
            return found
        matrix = W if minus is None else W.double() - minus.double()
        return singular_values(matrix, exact=True)


@dataclass
class Coming:
    """A tuned model's matrix on its way: all that is known but for what the solver still owes."""

    of: MeasuredBase
    key: Hashable
    W: torch.Tensor
    measures: dict[str, Any]
    tuned: Pending | None
    delta: Pending

    @property
    def solved(self) -> bool:
        """Whether the solver owes nothing any more."""
        return all(one is None or one.solved for one in (self.of.pending, self.tuned, self.delta))

    def found(self) -> Found:
        """The finished row."""
        of = self.of
        base = of.spectrum()
        tuned = None if self.tuned is None else of.resolved(self.tuned, self.W)
        delta = self.delta.spectrum
        if delta is None or delta.route == "gram":
            delta = of.resolved(self.delta, self.W, of.W0)
        values = {"delta": delta.values}
        if tuned is not None and base is not None:
            values |= {"tuned": tuned.values, "base": base.values}
        return Found(self.key, row(of.matrix, delta, base, tuned) | self.measures, values)


def _known(spectrum: Spectrum) -> Pending:
    known = Pending()
    known.set(spectrum)
    return known


def _not_finite(weights: Weights, name: str) -> str:
    return (
        f"{weights.entries[name].path}: {name} holds values that are not finite; "
        "the model is damaged or its training diverged"
    )
