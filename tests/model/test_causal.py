"""Models that see what follows are refused, whether they say so or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from paretune.errors import UserError
from paretune.model.causal import check_causal, refuse_encoder
from paretune.model.trainee import frozen
from paretune.study.config import Base

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def model_of(family: str, **settings: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**SMALL, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.is_meta:
            torch.nn.init.normal_(parameter, 0, 0.15, generator=draw)
    return model


@pytest.mark.parametrize("family", ["Bert", "Electra"])
def test_an_encoder_that_says_so_is_refused_without_its_weights(family: str) -> None:
    with torch.device("meta"):
        model = model_of(family)
    with pytest.raises(UserError, match=r"^base: mine sees the tokens that follow"):
        refuse_encoder(model, "mine")


@pytest.mark.parametrize("family", ["Bert", "RemBert", "MegatronBert"])
def test_an_encoder_that_does_not_is_found_out(family: str) -> None:
    with pytest.raises(UserError, match="give a causal LM"):
        check_causal(model_of(family), CPU, "mine")


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX", "Mamba", "Bloom", "Qwen3Moe"])
def test_a_causal_lm_is_not(family: str) -> None:
    model = model_of(family)
    refuse_encoder(model, "mine")
    check_causal(model, CPU, "mine")


def test_a_decoder_of_such_a_family_is_not() -> None:
    model = model_of("Bert", is_decoder=True)
    refuse_encoder(model, "mine")
    check_causal(model, CPU, "mine")


def test_a_base_in_a_folder(tmp_path: Path) -> None:
    model_of("RemBert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="sees the tokens that follow"):
        frozen(Base(name=str(tmp_path)), CPU)
