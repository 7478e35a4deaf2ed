"""Weights on disk, read one tensor at a time from memory-mapped safetensors shards."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from paretune.errors import UserError
from paretune.files import read_json

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
# What safetensors calls the types whose values are the weights themselves
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is, known without reading it."""

    path: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F32, BF16, U8, ...

    @property
    def is_float(self) -> bool:
        """Whether its values are weights as they are, not codes of a quantised file."""
        return self.dtype in _FLOATS


@dataclass
class Weights:
    """The tensors of a model folder, by name, memory-mapped.

    Attributes:
        folder: what the user gave, for messages.
        entries: every tensor of every shard.
    """

    folder: Path
    entries: dict[str, Entry]
    _open: threading.local = field(default_factory=threading.local)

    @classmethod
    def of(cls, folder: Path) -> Weights:
        """The model in ``folder``: its index, its one file, or every safetensors file there.

        Raises:
            UserError: no weights there; a shard is missing or torn; the model is quantised.
        """
        _refuse_quantised(folder)
        index = folder / INDEX
        wanted: dict[str, str] = read_json(index)["weight_map"] if index.exists() else {}
        paths = sorted({folder / name for name in wanted.values()})
        if not paths:
            paths = [p for p in sorted(folder.glob("*.safetensors")) if p.name != ADAPTER]
        if not paths:
            raise UserError(
                f"{folder}: no weights here; give a folder with *.safetensors files "
                "(pytorch_model.bin files can be converted with save_pretrained)"
            )
        entries: dict[str, Entry] = {}
        for path in paths:
            for name, entry in read_header(path, missing=_first(wanted, path.name)).items():
                entries[name] = entry
        for name, shard in sorted(wanted.items()):
            if name not in entries:
                raise UserError(
                    f"{folder / shard}: the tensor {name} is missing, though {INDEX} says that it "
                    "is there; download or save the model again"
                )
        return cls(folder, entries)

    def tensor(self, name: str, expert: int | None = None) -> torch.Tensor:
        """A tensor as it is stored, on the CPU, backed by the file; one expert's slice of it.

        Raises:
            UserError: its shard cannot be read.
        """
        entry = self.entries[name]
        try:
            file = self._file(entry.path)
            if expert is None:
                value: torch.Tensor = file.get_tensor(name)
            else:
                value = file.get_slice(name)[expert]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{entry.path}: {name} cannot be read ({error})") from error
        return value

    def _file(self, path: Path) -> Any:
        """An open shard, one handle for each thread: a handle is not meant to be shared."""
        files: dict[Path, Any] = self._open.__dict__.setdefault("files", {})
        if path not in files:
            files[path] = safe_open(path, framework="pt")
        return files[path]


def read_header(path: Path, *, missing: str = "") -> dict[str, Entry]:
    """The tensors of one safetensors file, without their values.

    Raises:
        UserError: the file is not there, or is torn (shorter than its header says).
    """
    if not path.exists():
        raise UserError(f"{path}: this shard is missing{missing}; download the model again")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: Entry(path, tuple(part.get_shape()), str(part.get_dtype()))
                for name, part in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: this shard is torn or is no safetensors file ({error})"
            f"{_beyond(path) or missing}; download or save it again"
        ) from error


def _beyond(path: Path) -> str:
    """The first tensor that a torn file's header places beyond its end, for messages."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
    except (OSError, ValueError):
        return ""
    ends = {n: h["data_offsets"][1] for n, h in header.items() if n != "__metadata__"}
    lost = [name for name, end in ends.items() if 8 + length + end > size]
    return f": {min(lost, key=ends.__getitem__)} lies beyond its end" if lost else ""


def _first(wanted: dict[str, str], shard: str) -> str:
    """The first tensor that a shard should hold, for messages."""
    names = sorted(name for name, place in wanted.items() if place == shard)
    return f", so {names[0]} cannot be read" if names else ""


def _refuse_quantised(folder: Path) -> None:
    path = folder / "config.json"
    config = read_json(path) if path.exists() else {}
    if not config.get("quantization_config"):
        return
    method = config["quantization_config"].get("quant_method", "an unnamed method")
    names = (
        name
        for file in sorted(folder.glob("*.safetensors"))
        for name, entry in sorted(read_header(file).items())
        if not entry.is_float
    )
    tensor = next(names, None)
    which = f", for example {tensor}" if tensor else ""
    raise UserError(
        f"{folder}: a quantised model ({method}); its tensors{which} are codes, not weights. "
        "Give the unquantised model"
    )
