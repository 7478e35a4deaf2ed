"""States that a run resumes from: one file an arm, whole or not there at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from paretune.files import sha256, write_text, write_with

_SHARDS = "shards"


def save_state(
    folder: Path,
    leg: str,
    step: int,
    tensors: dict[str, torch.Tensor],
    watch: dict[str, float],
    *,
    shards: Mapping[str, str] | None = None,
) -> None:
    """Write an arm's state after ``step`` of ``leg``; its checksum is written last.

    Args:
        shards: checksums of what several processes have written beside it (:func:`shards_of`).
    """
    path = state_path(folder, leg, step)
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {name: str(value) for name, value in watch.items()}
    if shards:
        metadata[_SHARDS] = json.dumps(shards)
    write_with(path, lambda temporary: save_file(content, temporary, metadata))
    write_text(_checksum(path), sha256(path) + "\n")


def intact(folder: Path, leg: str, step: int) -> bool:
    """Whether a state, and what several processes wrote of it, is what was written."""
    path = state_path(folder, leg, step)
    try:
        if sha256(path) != _checksum(path).read_text().strip():
            return False
        with safe_open(path, framework="pt") as file:
            shards = json.loads((file.metadata() or {}).get(_SHARDS, "{}"))
        place = shards_of(folder, leg, step)
        return all(sha256(place / Path(name).name) == known for name, known in shards.items())
    except (OSError, ValueError, SafetensorError):  # a checksum that is no text, too
        return False


def read_state(
    folder: Path, leg: str, step: int
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Undo of :func:`save_state`, of a state that is :func:`intact`."""
    with safe_open(state_path(folder, leg, step), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {k: v for k, v in (file.metadata() or {}).items() if k != _SHARDS}
    return tensors, {name: float(value) for name, value in metadata.items()}


def saved_steps(folder: Path, leg: str) -> set[int]:
    """Steps of ``leg`` that have a state with a checksum."""
    found = set()
    for path in folder.glob(f"{leg}@*.safetensors"):
        if _checksum(path).exists():
            found.add(int(path.stem.rpartition("@")[2]))
    return found


def prune(folder: Path, leg: str, keep: Iterable[int]) -> None:
    """Delete the states of ``leg`` but those of the steps to keep."""
    for step in saved_steps(folder, leg) - set(keep):
        path = state_path(folder, leg, step)
        _checksum(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        shutil.rmtree(shards_of(folder, leg, step), ignore_errors=True)


def shards_of(folder: Path, leg: str, step: int) -> Path:
    """Where several processes write what they share of a state."""
    return folder / f"{leg}@{step}.shards"


def state_path(folder: Path, leg: str, step: int) -> Path:
    """Where an arm's state after ``step`` of ``leg`` lies."""
    return folder / f"{leg}@{step}.safetensors"


def _checksum(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
