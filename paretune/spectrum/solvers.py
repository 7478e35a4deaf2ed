"""Who turns Gram matrices into singular values: one by one, or many at once on a GPU."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Protocol

import torch

from paretune.spectrum.singular import Spectrum, from_eigenvalues, from_gram

SMALLEST = 128  # smaller side from which the batched solver is used
_SLOTS = 96  # matrices solved together at most
_BYTES = 7 << 29  # of their memory: 3.5 GiB, which holds 26 of 4096 x 4096
_SHARE = 0.2  # of the memory that is free


class Pending:
    """A spectrum that is known once its batch is solved; None when the solver gave it up."""

    def __init__(self) -> None:
        self.solved = False
        self.spectrum: Spectrum | None = None

    def set(self, spectrum: Spectrum | None) -> None:
        """Fulfil it."""
        self.solved, self.spectrum = True, spectrum


class Solver(Protocol):
    """Takes Gram matrices (lower triangles) and gives singular values, now or later."""

    def add(self, G: torch.Tensor) -> Pending: ...

    def close(self) -> None: ...


class Direct:
    """The library's solver, one matrix after another."""

    def add(self, G: torch.Tensor) -> Pending:
        """Solve it now."""
        found = Pending()
        found.set(from_gram(G))
        return found

    def close(self) -> None:
        """Nothing waits."""


class Batched:
    """Matrices of one size gathered until there are enough of them, then solved together."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._direct = Direct()
        self._waiting: list[Pending] = []
        self._slots: torch.Tensor | None = None
        self._broken = False

    def add(self, G: torch.Tensor) -> Pending:
        """Keep a copy of it; when all places are taken, solve all."""
        n = G.shape[0]
        if n < SMALLEST or self._broken:
            return self._direct.add(G)
        if self._slots is None or self._slots.shape[-1] != n:
            self._flush()
            self._release()
            self._slots = self._new_slots(n)
        if self._slots is None:
            return self._direct.add(G)
        torch.add(G.tril(), G.tril(-1).mT, out=self._slots[len(self._waiting)])
        found = Pending()
        self._waiting.append(found)
        if len(self._waiting) == len(self._slots):
            self._flush()
        return found

    def close(self) -> None:
        """Solve what waits, and give back the memory."""
        self._flush()
        self._release()

    def _flush(self) -> None:
        if not self._waiting or self._slots is None:
            return
        from paretune.spectrum.tridiagonal import eigenvalues

        # What was recorded for these places solves all of them, also those left from before
        try:
            values, good = eigenvalues(self._slots)
        except RuntimeError as error:  # no compiler, no memory: the library's solver always works
            warnings.warn(f"matrices are solved one by one: {error}", stacklevel=2)
            self._give_up()
            return
        # One copy to the host: a copy for each matrix would wait for the device each time
        ascending, kept = values.cpu(), good.tolist()
        for place, found in enumerate(self._waiting):
            found.set(from_eigenvalues(ascending[place]) if kept[place] else None)
        self._waiting = []

    def _new_slots(self, n: int) -> torch.Tensor | None:
        free, _ = torch.cuda.mem_get_info(self._device)
        count = int(min(_SLOTS, _BYTES // (8 * n * n), _SHARE * free // (8 * n * n)))
        if count < 4:
            return None
        return torch.zeros(count, n, n, dtype=torch.float64, device=self._device)

    def _give_up(self) -> None:
        for found in self._waiting:
            found.set(None)
        self._waiting, self._broken = [], True
        self._release()

    def _release(self) -> None:
        if self._slots is not None:
            from paretune.spectrum.kernels import forget

            forget(self._slots)
            self._slots = None


def solver_for(device: torch.device) -> Solver:
    """The batched solver on a GPU that has the means for it, else the library's."""
    if device.type == "cuda" and find_spec("triton") is not None:
        return Batched(device)
    return Direct()
