"""What a scorer sees of a model, and what it gives back: item outcomes, scores, standard errors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from paretune.model.tree import TreeRow

Side = Literal["target", "source"]

# metric: its unit, and whether a higher value is better
METRICS: dict[str, tuple[str, bool]] = {
    "bits_per_byte": ("bits/byte", False),
    "cloze": ("accuracy", True),
    "exact_match": ("accuracy", True),
    "kl": ("nats/token", False),
    "reverse_kl": ("nats/token", False),
    "pass_at": ("accuracy", True),
    "distinct": ("answers", True),
    "distinct_pass": ("answers", True),
    "distinct_fail": ("answers", True),
    "similarity": ("similarity", False),
    "token_entropy": ("nats/token", True),
}

# From this many groups on, standard errors are clustered: fewer would estimate a variance badly
MIN_CLUSTERS = 8


class ArmModel(Protocol):
    """K arms that answer together, as every scorer sees them; nothing here needs gradients.

    Attributes:
        count: K, the number of arms (1 for the base or a full arm).
        device: where inputs must be and logits are.
        rows: rows of each arm, of the training block's length, that fit one forward pass.
    """

    @property
    def count(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def rows(self) -> int: ...

    def logits(
        self,
        input_ids_BS: torch.Tensor,
        attention_mask_BS: torch.Tensor | None = None,
        position_ids_BS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [K, B, S, V], in float32 or the compute type, of the same rows for every arm."""
        ...

    def step(
        self,
        input_ids_KBS: torch.Tensor,
        *,
        past: Any = None,
        attention_mask_KBS: torch.Tensor | None = None,
        position_ids_KBS: torch.Tensor | None = None,
        use_cache: bool = True,
    ) -> tuple[torch.Tensor, Any]:
        """Logits [K, B, S, V] for each arm's own rows, and the transformers cache [K * B, ...]."""
        ...

    def tree_refusal(self, longest: int) -> str | None:
        """Why rows packed as trees cannot be scored, or None; ``longest`` sequence in tokens."""
        ...

    @property
    def sparse_trees(self) -> bool:
        """Whether long rows packed as trees cost no more a token than short ones."""
        ...

    def tree(self, row: TreeRow, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each token that ``row`` asks for, and the likeliest in its place.

        [K, M] each; ties go to the first token of the vocabulary.

        Args:
            tokens: about how many tokens the sequences of all rows have, of which this is one.
        """
        ...


class Item(Protocol):
    """What every kind of item has: a name, and the group it belongs to (a package, a book)."""

    @property
    def id(self) -> str: ...

    @property
    def group(self) -> str: ...


@dataclass(frozen=True)
class Items:
    """One metric of one arm, item by item; its score is ``sum(value) / sum(weight)``.

    Attributes:
        metric: SET/METRIC, for example ``target/bits_per_byte``.
        unit: of the score.
        value: [n] float64. Bits of an item (bits_per_byte), nats summed over its tokens (kl),
            0 or 1 (cloze, exact_match); NaN where the arm's logits are not numbers.
        weight: [n] float64. UTF-8 bytes, tokens, or 1.
        note: what a reader of the score should know, such as prompts that were cut.
    """

    metric: str
    side: Side
    unit: str
    higher_is_better: bool
    ids: list[str]
    groups: list[str]
    value: NDArray[np.float64]
    weight: NDArray[np.float64]
    note: str | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.groups), len(self.value), len(self.weight)}
        if len(lengths) > 1:
            raise ValueError(f"{self.metric}: ids, groups, value and weight differ in length")


@dataclass(frozen=True)
class Score:
    """A score, its standard error (None where it is undefined, with the reason), and n items."""

    value: float
    stderr: float | None
    n: int
    reason: str | None


def outcomes(
    metric: str,
    items: Sequence[Item],
    value_KN: NDArray[np.float64],
    weight_N: NDArray[np.float64],
) -> list[Items]:
    """The outcomes of each arm, from values [K, N] and weights [N] in the order of ``items``."""
    kind = re.sub(r"_\d+$", "", metric.rsplit("/", 1)[-1])  # pass_at_10 is a pass_at
    unit, higher_is_better = METRICS[kind]
    side: Side = "target" if metric.startswith("target/") else "source"
    ids = [item.id for item in items]
    groups = [item.group for item in items]
    return [
        Items(metric, side, unit, higher_is_better, ids, groups, value_N, weight_N)
        for value_N in value_KN
    ]


def score(items: Items) -> Score:
    """The score of one metric of one arm, with its standard error.

    The value is NaN, with a reason, where an outcome is not a number or the weights sum to 0.
    """
    n = len(items.value)
    broken = n - int(np.isfinite(items.value).sum())
    if broken:
        return Score(math.nan, None, n, f"{broken} of {n} outcomes are not finite numbers")
    total = float(items.weight.sum())
    if total == 0:
        return Score(math.nan, None, n, "the items have no weight" if n else "there are no items")
    value = float(items.value.sum()) / total
    if n < 2:
        return Score(value, None, n, "one item shows no spread: a standard error needs two")
    return Score(value, ratio_stderr(items.value, items.weight, items.groups), n, None)


def ratio_stderr(
    value: NDArray[np.float64], weight: NDArray[np.float64], groups: Sequence[str]
) -> float | None:
    """Standard error of the ratio estimator R = sum(value) / sum(weight).

    By linearisation (Cochran, Sampling Techniques, 1977, equation 6.13, without the correction for
    a finite population): with residuals r_i = value_i - R weight_i,

        stderr(R)^2 = n / (n - 1) * sum(r_i^2) / sum(weight)^2.

    With equal weights this is the standard error of a mean. Items of one group are alike, so from
    ``MIN_CLUSTERS`` (8) groups on, residuals are first summed within groups and n is the number
    of groups; with fewer groups, items count as independent. For a paired difference, give the
    differences of the values.

    Returns:
        None where it is undefined: fewer than two items, no weight, or a value that is not finite.
    """
    total = weight.sum()
    if len(value) < 2 or total == 0 or not (np.isfinite(value).all() and np.isfinite(total)):
        return None
    residual = value - value.sum() / total * weight
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) >= MIN_CLUSTERS:
        residual = np.bincount(member, weights=residual)
    n = len(residual)
    return float(np.sqrt(n / (n - 1) * np.square(residual).sum()) / total)
