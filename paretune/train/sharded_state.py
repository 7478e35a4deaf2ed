"""Sharded states on disk, which any number of processes can go on from.

Written by torch.distributed.checkpoint in its safetensors form; its own form holds pickles, and a
study's folder is handed around.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from paretune.files import sha256

# They speak of what is right: that there is no process group, or no metadata file
logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)


def save_shards(folder: Path, tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Write sharded tensors; every process calls it and writes its own shards.

    Returns:
        The SHA-256 of every file of the folder, by name.
    """
    save(
        _named(tensors),
        storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
    )
    files = sorted(folder.glob("*.safetensors"))
    own = {path.name: sha256(path) for path in files[dist.get_rank() :: dist.get_world_size()]}
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return {name: found for sums in every for name, found in sums.items()}


def load_shards(folder: Path, tensors: Mapping[str, Mapping[str, Any]]) -> None:
    """Undo of :func:`save_shards` into tensors that are there, sharded or whole, in place.

    With a process group every process calls it; without one, this process reads all of it.
    """
    load(_named(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


def _named(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{kind}/{name}": value for kind, of in tensors.items() for name, value in of.items()}
