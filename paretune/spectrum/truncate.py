"""The leading part of an update: W0 + s Delta_r, as factors, as an adapter, as a whole model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from paretune.errors import UserError
from paretune.files import make_folder, write_with
from paretune.spectrum.adapters import Adapter
from paretune.spectrum.directions import directions
from paretune.spectrum.matrices import Matrix
from paretune.spectrum.measuring import Tuned
from paretune.spectrum.singular import gram
from paretune.spectrum.weights import ADAPTER, Weights


@dataclass(frozen=True)
class Leading:
    """The best approximation of one update of rank at most k (Eckart and Young, 1936).

    Attributes:
        B: [d_out, k] and ``A`` [k, d_in], float64: Delta_r = B[:, :r] @ A[:r] for every r <= k.
        energy: [k] share of the update's squared norm in the first r directions.
    """

    B: torch.Tensor
    A: torch.Tensor
    energy: torch.Tensor

    def update(self, rank: int) -> torch.Tensor:
        """Delta_r [d_out, d_in], float64."""
        return self.B[:, :rank] @ self.A[:rank]

    def to(self, device: torch.device | str) -> Leading:
        """The same on another device."""
        return Leading(self.B.to(device), self.A.to(device), self.energy.to(device))


def leading(D: torch.Tensor, k: int) -> Leading:
    """The first k singular directions of an update [d_out, d_in]; both factors carry sqrt(sigma).

    The update is projected onto the k leading eigenvectors of its Gram matrix, so that what is
    kept is exact even where a small singular value itself is not resolved.
    """
    turned = D.shape[0] > D.shape[1]
    D = D.double()
    own = directions(gram(D), min(k, *D.shape))
    root = own.values.clamp(min=1e-300).sqrt()
    scale = torch.where(own.values > 0, root, 0.0)
    inverse = torch.where(own.values > 0, 1 / root, 0.0)
    squares = own.spectrum.values.square()
    total = float(squares.sum())
    energy = squares.cumsum(0)[: len(own.values)] / total if total > 0 else torch.ones(len(root))
    if turned:
        B, A = (D @ own.vectors) * inverse, (own.vectors * scale).T
    else:
        B, A = own.vectors * scale, (D.T @ own.vectors * inverse).T
    return Leading(B, A, energy)


def updates(
    base: Weights, tuned: Tuned, matrices: Sequence[Matrix], device: torch.device
) -> Iterator[tuple[Matrix, torch.Tensor]]:
    """Every matrix's update [d_out, d_in] in float64, one at a time.

    Raises:
        UserError: an update holds values that are not finite; names the tensor.
    """
    for matrix in matrices:
        D = update(base, tuned, matrix, device)
        if not bool(torch.isfinite(D).all()):
            raise UserError(
                f"{tuned.key}: the update of {matrix.name} holds values that are not finite"
            )
        yield matrix, D


def update(base: Weights, tuned: Tuned, matrix: Matrix, device: torch.device) -> torch.Tensor:
    """One matrix's W - W0 [d_out, d_in] in float64."""
    W0 = base.tensor(matrix.tensor, matrix.expert).to(device).double()
    W0 = W0.T if matrix.transposed else W0
    if isinstance(tuned.source, Adapter):
        return tuned.source.tuned(matrix.tensor, W0) - W0
    name = tuned.names[matrix.tensor]
    W = tuned.source.tensor(name, matrix.expert).to(device).double()
    return (W.T if matrix.transposed else W) - W0


def write_adapter(
    to: Path,
    parts: dict[str, Leading],
    rank: int,
    *,
    scale: float = 1.0,
    transposed: bool = False,
    base: str | None = None,
) -> None:
    """Write the leading parts as a LoRA adapter in PEFT's format, float32, alpha = scale * rank.

    Args:
        parts: by the path of the module in the model. A matrix smaller than the rank is filled
            up with zeros, so that one rank serves all.
    """
    import peft

    state: dict[str, torch.Tensor] = {}
    for path, part in parts.items():
        for name, factor, axis in (("A", part.A[:rank], 0), ("B", part.B[:, :rank], 1)):
            missing = rank - factor.shape[axis]
            padding = (0, 0, 0, missing) if axis == 0 else (0, missing)
            filled = torch.nn.functional.pad(factor.float().cpu(), padding)
            state[f"base_model.model.{path}.lora_{name}.weight"] = filled.contiguous()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=scale * rank,
        target_modules=sorted(parts),
        fan_in_fan_out=transposed,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    make_folder(to)
    write_with(to / ADAPTER, lambda path: save_file(state, path, {"format": "pt"}))
    config.save_pretrained(str(to))


def write_model(
    to: Path,
    base: Weights,
    tuned: Tuned,
    matrices: Sequence[Matrix],
    rank: int | None,
    scale: float,
    device: torch.device,
) -> None:
    """Write W0 + s Delta_r as a whole model, shard by shard.

    Tensors outside the layers, and vectors, are the tuned model's (for an adapter the base's, but
    for the biases that it trained), in the type they are stored in; matrices are rounded to the
    type that the tuned model has.
    """
    source = base if isinstance(tuned.source, Adapter) else tuned.source
    by_name: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        by_name.setdefault(tuned.names.get(matrix.tensor, matrix.tensor), []).append(matrix)
    shards: dict[Path, list[str]] = {}
    for name, entry in source.entries.items():
        shards.setdefault(entry.path, []).append(name)
    make_folder(to)
    for path, names in shards.items():
        state = {}
        for name in names:
            value = source.tensor(name).clone()
            if isinstance(tuned.source, Adapter) and (own := tuned.source.bias(name)) is not None:
                value.copy_(own)
            for matrix in by_name.get(name, ()):
                W = _truncated(base, tuned, matrix, rank, scale, device).to(value.dtype).cpu()
                if matrix.expert is None:
                    value = W.contiguous()
                else:
                    value[matrix.expert] = W
            state[name] = value
        write_with(to / path.name, lambda file, s=state: save_file(s, file, {"format": "pt"}))  # type: ignore[misc]
    for file in sorted(source.folder.iterdir()):
        if file.suffix in (".json", ".txt", ".model", ".jinja") and file.name != "checksums.json":
            shutil.copy2(file, to / file.name)


def _truncated(
    base: Weights,
    tuned: Tuned,
    matrix: Matrix,
    rank: int | None,
    scale: float,
    device: torch.device,
) -> torch.Tensor:
    """W0 + s Delta_r of one matrix, as it is stored."""
    D = update(base, tuned, matrix, device)
    if rank is not None:
        D = leading(D, rank).update(rank)
    W0 = base.tensor(matrix.tensor, matrix.expert).to(device).double()
    return W0 + scale * (D.T if matrix.transposed else D)
