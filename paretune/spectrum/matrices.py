"""Which weight matrices a base and a tuned model share, and what is wrong where they do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from paretune.errors import UserError
from paretune.model.layers import Kind, kind_of
from paretune.spectrum.weights import Entry, Weights


@dataclass(frozen=True)
class Matrix:
    """One weight matrix inside the model's layers.

    Attributes:
        name: of its tensor; with ``[e]`` behind it for one of a tensor of experts.
        tensor: the tensor's name in the base.
        layer: the first number in the name.
        module: the last part of the module's path: q_proj, down_proj, c_attn, ...
        transposed: stored as [d_in, d_out], as GPT-2's Conv1D does.
    """

    name: str
    tensor: str
    layer: int
    module: str
    kind: Kind
    d_out: int
    d_in: int
    transposed: bool = False
    expert: int | None = None

    @property
    def smaller(self) -> int:
        """The number of singular values."""
        return min(self.d_out, self.d_in)


def matrices_of(base: Weights, transposed: Iterable[str] = ()) -> list[Matrix]:
    """Every matrix inside the base's numbered layers, by layer and name.

    Embeddings, the output head and norms stand outside the layers or are vectors: their change is
    not a matrix that a LoRA adapter would have. A fused matrix (q, k and v in one) stays whole, as
    the model multiplies with it. Of a tensor with an expert axis each expert is a matrix.

    Args:
        transposed: paths of the modules that store [d_in, d_out].

    Raises:
        UserError: a matrix is stored as codes (quantised), or there is no matrix.
    """
    turned = tuple(transposed)
    found: list[Matrix] = []
    for name, entry in base.entries.items():
        layer = _layer(name)
        if layer is None or len(entry.shape) not in (2, 3) or min(entry.shape[-2:]) < 2:
            continue
        if not entry.is_float:
            raise UserError(
                f"{base.folder}: {name} is stored as {entry.dtype}, a quantised type; "
                "give the unquantised model"
            )
        path = name.removesuffix(".weight")
        is_turned = any(same_path(path, other) for other in turned)
        d_out, d_in = entry.shape[-2:][::-1] if is_turned else entry.shape[-2:]
        experts = range(entry.shape[0]) if len(entry.shape) == 3 else [None]
        module = path.rsplit(".", 1)[-1]
        found += [
            Matrix(
                name if expert is None else f"{name}[{expert}]",
                name, layer, module, kind_of(path), d_out, d_in, is_turned, expert,
            )
            for expert in experts
        ]  # fmt: skip
    if not found:
        raise UserError(
            f"{base.folder}: no weight matrix in numbered layers; is this a language model?"
        )
    return sorted(found, key=lambda m: (m.layer, m.tensor, m.expert or 0))


def left_out(base: Weights, matrices: Iterable[Matrix]) -> list[str]:
    """Names of the base's tensors with two or more axes that are not among ``matrices``."""
    taken = {matrix.tensor for matrix in matrices}
    return [n for n, e in base.entries.items() if n not in taken and len(e.shape) > 1]


def match(base: Weights, tuned: Weights, matrices: Iterable[Matrix]) -> dict[str, str]:
    """The tuned model's tensor of each of the base's: the same name, or one with a prefix.

    Raises:
        UserError: a tensor is missing, has another shape, or is quantised; names it.
    """
    pairs: dict[str, str] = {}
    prefix = _prefix(base, tuned)
    for matrix in matrices:
        own = base.entries[matrix.tensor]
        name = prefix.name(matrix.tensor)
        other = tuned.entries.get(name)
        if other is None:
            raise UserError(
                f"{tuned.folder}: the tensor {name} is missing; is it a finetune of {base.folder}?"
            )
        check(tuned.folder, name, own, other)
        pairs[matrix.tensor] = name
    return pairs


def vocabulary(base: Weights, tuned: Weights) -> tuple[str, int, int] | None:
    """The first tensor outside the layers whose rows differ in number, as after new tokens."""
    prefix = _prefix(base, tuned)
    for name, entry in base.entries.items():
        other = tuned.entries.get(prefix.name(name))
        if other is None or _layer(name) is not None or len(entry.shape) != 2:
            continue
        if other.shape[1:] == entry.shape[1:] and other.shape[0] != entry.shape[0]:
            return name, entry.shape[0], other.shape[0]
    return None


def check(folder: Path, name: str, own: Entry, other: Entry) -> None:
    """Refuse a tuned tensor of another shape, or one that holds codes.

    Raises:
        UserError: names the tensor.
    """
    if not other.is_float:
        raise UserError(
            f"{folder}: {name} is stored as {other.dtype}, a quantised type; "
            "give the unquantised model"
        )
    if other.shape != own.shape:
        raise UserError(
            f"{folder}: {name} has the shape {_shape(other.shape)}, in the base it is "
            f"{_shape(own.shape)}; is this a finetune of that base?"
        )


@dataclass(frozen=True)
class _Prefix:
    remove: str
    add: str

    def name(self, name: str) -> str:
        return self.add + name.removeprefix(self.remove)


def _prefix(base: Weights, tuned: Weights) -> _Prefix:
    """What stands before the names of one model and not of the other (``model.``), if anything."""
    name = next((n for n in base.entries if _layer(n) is not None), "")
    if name in tuned.entries:
        return _Prefix("", "")
    for other in tuned.entries:
        if other.endswith("." + name):
            return _Prefix("", other.removesuffix(name))
        if name.endswith("." + other):
            return _Prefix(name.removesuffix(other), "")
    return _Prefix("", "")


def same_path(path: str, other: str) -> bool:
    """Whether two paths of modules or tensors are the same but for a prefix (``model.``)."""
    return path == other or path.endswith("." + other) or other.endswith("." + path)


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
