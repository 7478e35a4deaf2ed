"""Arms that share a forward pass, and what they add in each layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from paretune.model.adapter import Bank
from paretune.model.outputs import Output
from paretune.model.product import Term


@dataclass(frozen=True)
class Pass:
    """Arms whose rows go through the model together: places ``start`` to ``stop`` of the cohort."""

    start: int
    stop: int
    banks: tuple[Bank, ...]

    @property
    def count(self) -> int:
        """Number of arms."""
        return self.stop - self.start

    @cached_property
    def terms(self) -> dict[bool, dict[str, tuple[Term, ...]]]:
        """What the arms add in each layer, without (False) and with (True) dropout."""
        names = dict.fromkeys(name for bank in self.banks for name in bank.layers)
        return {
            drops: {
                name: tuple(
                    term
                    for bank in self.banks
                    if name in bank.layers
                    for term in bank.terms(name, drops=drops)
                )
                for name in names
            }
            for drops in (False, True)
        }

    @cached_property
    def outputs(self) -> dict[bool, dict[str, Output]]:
        """What outputs go through where arms scale them or train biases, as for :attr:`terms`."""
        scaled = {name for bank in self.banks if bank.arms[0].dora for name in bank.layers}
        names = scaled.union(*(bank.biases for bank in self.banks))
        return {
            drops: {name: self._output(name, name in scaled, drops) for name in sorted(names)}
            for drops in (False, True)
        }

    def _output(self, name: str, scaled: bool, drops: bool) -> Output:
        biases = [bias for bank in self.banks if (bias := bank.bias(name)) is not None]
        scales = [bank.scale(name, drops=drops) for bank in self.banks] if scaled else []
        return Output(tuple(scales), tuple(biases))
