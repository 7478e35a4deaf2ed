"""What a machine or a base cannot do is said before a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from paretune import UserError
from paretune.runner.device import check_compiler
from paretune.runner.workspace import unreached_by_lora
from paretune.study.config import StudyConfig


def test_a_gpu_without_a_compiler_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    check_compiler(torch.device("cpu"))
    with pytest.raises(UserError, match=r"needs a C compiler.*install gcc or clang"):
        check_compiler(torch.device("cuda"))
    gcc = tmp_path / "gcc"
    gcc.write_text("#!/bin/sh\n")
    gcc.chmod(0o755)
    check_compiler(torch.device("cuda"))


def config(base: str) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "name": "mine",
            "base": base,
            "regime": "cpt",
            "target": {"data": {"from": "json", "path": "rows.jsonl"}},
            "training": {"block_length": 16, "batch_size": 2},
            "budgets": {"at": ["10ba"]},
            "arms": [{"method": "lora", "rank": 4, "learning_rate": 1e-3}],
        }
    )


def test_experts_that_no_adapter_reaches_are_named(tmp_path: Path) -> None:
    settings = MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    model = AutoModelForCausalLM.from_config(settings)
    model.save_pretrained(tmp_path)
    experts = sum(p.numel() for name, p in model.named_parameters() if "experts" in name)
    share = experts / sum(p.numel() for p in model.parameters())
    note = unreached_by_lora(config(str(tmp_path)))
    assert note is not None
    assert "model.layers.0.mlp.experts.gate_up_proj" in note
    # The routers' matrices come on top
    assert f"{share:.0%}" in note or f"{share + 0.01:.0%}" in note
    assert unreached_by_lora(config("pocket")) is None
