"""Bases from strangers: code of theirs is run where the study says so, pickles are never read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from paretune.errors import UserError
from paretune.model.load import load_config, load_model, load_tokenizer
from paretune.spectrum.adapters import Adapter
from paretune.study.config import Base

CPU = torch.device("cpu")


class Run:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_with_the_reason(tiny_base: Base, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_base.name, tmp_path / "base"))
    (folder / "model.safetensors").unlink()
    trace = tmp_path / "trace"
    (folder / name).write_bytes(pickle.dumps(Run(trace)))
    with pytest.raises(UserError, match=rf"{name} is a pickle, which can run any code"):
        load_model(Base(name=str(folder)), CPU)
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes())
    assert trace.exists(), "the pickle would have run its code"


def test_an_adapter_in_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Run(tmp_path / "trace")))
    with pytest.raises(UserError, match=r"a pickle such as adapter_model\.bin"):
        Adapter.of(tmp_path, [])
    assert not (tmp_path / "trace").exists()


@pytest.fixture
def with_code(tiny_base: Base, tmp_path: Path) -> Path:
    """A base with a configuration class of its own, which leaves a trace when it is imported."""
    folder = Path(shutil.copytree(tiny_base.name, tmp_path / "with-code"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(
        "import os\n"
        f"os.mkdir({str(tmp_path / 'trace')!r})\n"
        "from transformers import LlamaConfig\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    return folder


def test_code_of_a_base_is_not_run(
    with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base(name=str(with_code))
    assert base.trust_remote_code is False
    for load in (load_config, load_tokenizer, lambda b: load_model(b, CPU)):
        with pytest.raises(UserError, match="cannot be loaded"):
            load(base)
    with pytest.raises(UserError, match="trust_remote_code: true"):
        load_config(base)
    assert not (tmp_path / "trace").exists()


def test_code_of_a_base_is_run_when_the_study_says_so(
    with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    config = load_config(Base(name=str(with_code), trust_remote_code=True))
    assert config.model_type == "own"
    assert (tmp_path / "trace").exists()
