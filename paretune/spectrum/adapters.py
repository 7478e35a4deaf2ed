"""LoRA adapters in PEFT's format, as the factors of each matrix's update."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paretune.errors import UserError
from paretune.files import read_json
from paretune.spectrum.matrices import Matrix, same_path
from paretune.spectrum.singular import Spectrum, factor_values
from paretune.spectrum.weights import ADAPTER, Entry, Weights, read_header

CONFIG = "adapter_config.json"
_MODEL = "base_model.model."  # what PEFT puts before the names of the base's modules
_PART = re.compile(
    r"^base_model\.model\.(?P<layer>.+)\.lora_"
    r"(?P<part>A|B|magnitude_vector)(?:\.(?:\w+\.)?weight)?$"
)
_BATCH_BYTES = 1 << 30  # float64 factors in one batched call


@dataclass(frozen=True)
class Factors:
    """One matrix's update gamma B A: the names of its factors, and its scale.

    With ``magnitude`` (DoRA) the rows of W0 + gamma B A are brought to the lengths that it holds.
    """

    A: str
    B: str
    gamma: float
    magnitude: str | None = None


@dataclass
class Adapter:
    """A LoRA adapter: factors by the name of the base's tensor, and biases trained beside them.

    Attributes:
        biases: names of the adapter's tensors by those of the model's parameters.
    """

    folder: Path
    weights: Weights
    factors: dict[str, Factors]
    biases: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, matrices: Iterable[Matrix]) -> Adapter:
        """The adapter in ``folder`` over a base with these matrices.

        Raises:
            UserError: it is no LoRA, holds more than low-rank updates, or does not fit the base.
        """
        config = read_json(folder / CONFIG)
        _refuse(folder, config)
        entries = read_header(folder / ADAPTER)
        by_path = {matrix.tensor.removesuffix(".weight"): matrix for matrix in matrices}
        parts: dict[str, dict[str, str]] = {}
        biases: dict[str, str] = {}
        for name in entries:
            found = _PART.match(name)
            if name.endswith(".bias"):  # a vector, not a matrix's update
                biases[name.removeprefix(_MODEL).replace(".base_layer.", ".")] = name
                continue
            if not found:
                raise UserError(
                    f"{folder / ADAPTER}: {name} is not part of a low-rank update; "
                    "merge the adapter into its base and give the merged model"
                )
            parts.setdefault(found["layer"], {})[found["part"]] = name
        factors: dict[str, Factors] = {}
        for layer, names in parts.items():
            matrix = by_path.get(layer) or _with_prefix(layer, by_path)
            if matrix is None:
                raise UserError(
                    f"{folder / ADAPTER}: the base has no matrix {layer}; is this an adapter of it?"
                )
            if not {"A", "B"} <= set(names):
                have = next(iter(names.values()))
                raise UserError(f"{folder / ADAPTER}: {have} is there, the other factor is missing")
            _check_shapes(folder, entries, names, matrix)
            rank = entries[names["A"]].shape[0]
            factors[matrix.tensor] = Factors(
                names["A"],
                names["B"],
                _gamma(config, layer, rank),
                names.get("magnitude_vector"),
            )
        return cls(folder, Weights(folder, entries), factors, biases)

    def pair(self, tensor: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """B [d_out, r], A [r, d_in] and gamma of a base tensor."""
        own = self.factors[tensor]
        B, A = self.weights.tensor(own.B), self.weights.tensor(own.A)
        for name, value in ((own.B, B), (own.A, A)):
            if not bool(torch.isfinite(value).all()):
                raise UserError(f"{self.folder / ADAPTER}: {name} holds values that are not finite")
        return B, A, own.gamma

    def bias(self, name: str) -> torch.Tensor | None:
        """A parameter of the base as the adapter has trained it, if it is such a bias."""
        found = next((own for of, own in self.biases.items() if same_path(of, name)), None)
        return None if found is None else self.weights.tensor(found)

    def tuned(self, tensor: str, W0: torch.Tensor) -> torch.Tensor:
        """W [d_out, d_in] in float64 on W0's device; W0 itself where the adapter has no part."""
        W0 = W0.double()
        if tensor not in self.factors:
            return W0
        B, A, gamma = self.pair(tensor)
        W = W0 + gamma * (B.to(W0) @ A.to(W0))
        name = self.factors[tensor].magnitude
        if name is not None:
            # Liu et al. (2024): the length of each row is trained by itself
            length = self.weights.tensor(name).to(W0).flatten()
            W = W * (length / torch.linalg.vector_norm(W, dim=1))[:, None]
        return W

    def spectra(
        self, matrices: Iterable[Matrix], device: torch.device
    ) -> Iterator[tuple[Matrix, Spectrum]]:
        """The updates' singular values, matrices of one shape and rank in batches.

        A matrix without an adapter has a single zero. Those with DoRA are left out: their update
        is not of low rank.
        """
        groups: dict[tuple[int, int, int], list[Matrix]] = {}
        for matrix in matrices:
            if matrix.tensor not in self.factors:
                yield matrix, Spectrum(torch.zeros(1, dtype=torch.float64), "factors")
                continue
            if self.factors[matrix.tensor].magnitude is not None:
                continue
            rank = self.weights.entries[self.factors[matrix.tensor].A].shape[0]
            groups.setdefault((matrix.d_out, matrix.d_in, rank), []).append(matrix)
        for (d_out, d_in, rank), group in groups.items():
            size = max(1, _BATCH_BYTES // (8 * rank * (d_out + d_in)))
            for start in range(0, len(group), size):
                batch = group[start : start + size]
                pairs = [self.pair(matrix.tensor) for matrix in batch]
                B = torch.stack([B for B, _, _ in pairs]).to(device)
                A = torch.stack([A for _, A, _ in pairs]).to(device)
                values = factor_values(B, A, [gamma for _, _, gamma in pairs])
                yield from zip(batch, values, strict=True)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).exists()


def _refuse(folder: Path, config: dict[str, Any]) -> None:
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise UserError(f"{folder / CONFIG}: a {kind or 'nameless'} adapter; only LoRA is read")
    if not (folder / ADAPTER).exists():
        raise UserError(
            f"{folder}: {ADAPTER} is missing; save the adapter as safetensors "
            "(a pickle such as adapter_model.bin can run any code when it is read, and is not)"
        )


def _gamma(config: dict[str, Any], layer: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with PEFT's patterns for single layers."""
    alpha = float(_of_pattern(config.get("alpha_pattern"), layer, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(pattern: dict[str, Any] | None, layer: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of a layer's path."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return default


def _with_prefix(layer: str, by_path: dict[str, Matrix]) -> Matrix | None:
    """The matrix whose path differs by a prefix only (``model.``)."""
    return next((m for path, m in by_path.items() if same_path(path, layer)), None)


def _check_shapes(
    folder: Path, entries: dict[str, Entry], names: dict[str, str], matrix: Matrix
) -> None:
    A, B = entries[names["A"]], entries[names["B"]]
    for name, entry in ((names["A"], A), (names["B"], B)):
        if not entry.is_float:
            raise UserError(f"{folder / ADAPTER}: {name} is stored as {entry.dtype}, not as floats")
    if A.shape[1:] != (matrix.d_in,) or B.shape[:1] != (matrix.d_out,) or A.shape[0] != B.shape[1]:
        raise UserError(
            f"{folder / ADAPTER}: {names['A']} and its partner are {A.shape} and {B.shape}, which "
            f"do not fit {matrix.name} ({matrix.d_out} x {matrix.d_in})"
        )
