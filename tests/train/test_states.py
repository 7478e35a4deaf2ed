"""States to resume from are whole, or known not to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paretune.train.state import intact, read_state, save_state, state_path

TENSORS, WATCH = {"values": torch.arange(4.0)}, {"first": 1.5, "step": -1}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_state(tmp_path, "main", 3, TENSORS, WATCH)
    assert intact(tmp_path, "main", 3)
    tensors, watch = read_state(tmp_path, "main", 3)
    assert torch.equal(tensors["values"], TENSORS["values"])
    assert watch == WATCH
    assert not intact(tmp_path, "main", 4)


@pytest.mark.parametrize("which", ["state", "checksum"])
@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"no state"], ids=str)
def test_any_damage_is_noticed(which: str, damage: bytes, tmp_path: Path) -> None:
    save_state(tmp_path, "main", 3, TENSORS, WATCH)
    path = state_path(tmp_path, "main", 3)
    path = path if which == "state" else path.with_name(path.name + ".sha256")
    path.write_bytes(damage)
    assert not intact(tmp_path, "main", 3)
