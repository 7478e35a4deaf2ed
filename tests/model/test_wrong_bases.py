"""A base whose configuration makes no model, or another one than its weights, is one message."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from paretune.errors import UserError
from paretune.model.load import load_model, load_shape, load_tokenizer, location
from paretune.study.config import Base

CPU = torch.device("cpu")
LLAMA = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_attention_heads": 0}, "modulo by zero"),
        (
            {"hidden_size": "wide"},
            "field 'hidden_size': TypeError: Field 'hidden_size' expected int",
        ),
        ({"vocab_size": -1}, "its configuration makes no model: "),
        ({"hidden_act": "nope"}, "its configuration makes no model: "),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_model(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    LLAMA.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"cannot be loaded .*{reason}.*give a folder"):
        load_shape(Base(name=str(tmp_path)))


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    transformers.T5Config(d_model=16).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"\(its kind, t5, is no causal LM\); give a folder"):
        load_shape(Base(name=str(tmp_path)))


def test_weights_of_other_shapes(tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(LLAMA).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 40}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(Base(name=str(tmp_path)), CPU)


def test_a_tokenizer_of_no_kind(tmp_path: Path) -> None:
    """The library's own error is a bare Exception."""
    shutil.copytree(location(Base(name="pocket")), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": {"type": "nope"}}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(Base(name=str(tmp_path)))


def test_a_full_disk_is_not_the_bases_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        load_shape(Base(name=str(tmp_path)))
