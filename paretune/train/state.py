"""States that a run resumes from: one file an arm, whole or not there at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from paretune.files import sha256, write_text, write_with


def save_state(
    folder: Path, leg: str, step: int, tensors: dict[str, torch.Tensor], watch: dict[str, float]
) -> None:
    """Write an arm's state after ``step`` of ``leg``; its checksum is written last."""
    path = state_path(folder, leg, step)
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {name: str(value) for name, value in watch.items()}
    write_with(path, lambda temporary: save_file(content, temporary, metadata))
    write_text(_checksum(path), sha256(path) + "\n")


def load_state(
    folder: Path, leg: str, step: int
) -> tuple[dict[str, torch.Tensor], dict[str, float]] | None:
    """Undo of :func:`save_state`; None when the file is absent, cut off or altered."""
    path = state_path(folder, leg, step)
    try:
        if sha256(path) != _checksum(path).read_text().strip():
            return None
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            watch = {name: float(value) for name, value in (file.metadata() or {}).items()}
        return tensors, watch
    except (OSError, SafetensorError):
        return None


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


def state_path(folder: Path, leg: str, step: int) -> Path:
    """Where an arm's state after ``step`` of ``leg`` lies."""
    return folder / f"{leg}@{step}.safetensors"


def _checksum(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
