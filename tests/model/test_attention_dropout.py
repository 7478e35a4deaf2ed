"""Attention dropout is on in bases that write it in different ways, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from paretune.errors import UserError
from paretune.model.attention_dropout import (
    check_attention_dropout,
    check_it_drops,
    dropping_attention,
)

CPU = torch.device("cpu")
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def model_of(family: str, **settings: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**SMALL, **settings)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


# Bloom's and Persimmon's attention hold a module for it
@pytest.mark.parametrize("family", ["Llama", "GPTNeoX", "Bloom", "Persimmon"])
@torch.no_grad()
def test_it_is_on_within_and_off_after(family: str) -> None:
    model = model_of(family, attention_dropout=0.5)
    check_attention_dropout(model, family)
    check_it_drops(lambda ids: model(ids).logits, model, CPU, family)
    ids = torch.arange(24).view(2, 12)
    plain = model(ids).logits

    def dropped(seed: int) -> torch.Tensor:
        with dropping_attention(model, CPU, seed):
            logits: torch.Tensor = model(ids).logits
        return logits

    assert not torch.allclose(dropped(1), plain, atol=1e-6)
    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))
    assert torch.equal(model(ids).logits, plain)


def test_a_base_whose_modules_do_not_tell_is_refused() -> None:
    with torch.device("meta"):
        model = model_of("OPT", attention_dropout=0.5, word_embed_proj_dim=32)
    told = r"^arms\[0\]\.attention_dropout: OPT has no attention dropout that can be switched on"
    with pytest.raises(UserError, match=told):
        check_attention_dropout(model, "OPT", where="arms[0].attention_dropout")


def test_a_base_without_such_a_rate_is_refused() -> None:
    with pytest.raises(UserError, match="GPTJ has no attention dropout"):
        check_attention_dropout(model_of("GPTJ", rotary_dim=8), "GPTJ")


def test_a_base_whose_attention_leaves_it_out_is_refused() -> None:
    """Falcon's modules know the rate, and its fused attention is not told of it."""
    model = model_of("Falcon", attention_dropout=0.5)
    check_attention_dropout(model, "Falcon")
    with pytest.raises(UserError, match="Falcon has no attention dropout"):
        check_it_drops(lambda ids: model(ids).logits, model, CPU, "Falcon")
