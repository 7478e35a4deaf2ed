"""Weights with an arm axis, family by family, against that many models of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paretune.model.arm_axis import FullBank, give_arm_axis, refuse_reason
from paretune.study.arms import ArmConfig

ARMS, ROWS = 3, 2
LLAMA: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 3,
}
GPT2: dict[str, Any] = {
    "vocab_size": 96,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA | {"tie_word_embeddings": True},
    "gemma2": LLAMA | {"head_dim": 8},  # scaled embeddings, norms that multiply by 1 + w, a cap
    "qwen3": LLAMA | {"head_dim": 8},  # norms of each head
    "gpt2": GPT2,  # transposed matrices, learned positions
    "gptj": GPT2 | {"rotary_dim": 4},  # a head with a bias
    "opt": LLAMA | {"ffn_dim": 48, "word_embed_proj_dim": 32},  # positions from the mask
    "gpt_neox": LLAMA,
    "bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "olmo": LLAMA,  # norms without weights
}
REFUSED = {
    "mixtral": LLAMA | {"num_local_experts": 4},
    "mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def models(family: str, count: int) -> list[torch.nn.Module]:
    torch.manual_seed(0)
    made = []
    for _ in range(count):
        config = AutoConfig.for_model(family, **(FAMILIES | REFUSED)[family])
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            noise = 0.15 * torch.randn(parameter.shape)
            parameter.data = noise + 1 if parameter.dim() == 1 else noise
        made.append(model)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_several_arms_in_one_pass_equal_as_many_models(family: str) -> None:
    """Logits, and the gradient of every weight."""
    *references, carrier = models(family, ARMS + 1)
    base, modules = give_arm_axis(carrier, torch.device("cpu"))
    arms = [ArmConfig(method="full", learning_rate=1.0, seed=k) for k in range(ARMS)]
    bank = FullBank(arms, range(ARMS), base, torch.device("cpu"))
    for k, model in enumerate(references):
        for name, value in model.named_parameters():
            bank.flat.tensors(k)[name].copy_(value.detach())
    for module in modules:
        module.use(bank)
        module.rows = ARMS * ROWS
    ids = torch.randint(0, 96, (ARMS * ROWS, 10), generator=torch.Generator().manual_seed(0))
    logits = carrier(input_ids=ids, use_cache=False).logits
    expected = torch.cat(
        [
            model(input_ids=part, use_cache=False).logits
            for model, part in zip(references, ids.chunk(ARMS), strict=True)
        ]
    )
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, parameter in bank.flat.parameters.items():
        if name.endswith("k_proj.bias"):
            continue  # a bias on all keys cancels in the softmax
        assert parameter.grad is not None
        for k, model in enumerate(references):
            grad = model.get_parameter(name).grad
            if grad is None:
                assert not parameter.grad[k].any()
            else:
                error = (parameter.grad[k] - grad).norm()
                assert error <= 1e-4 * grad.norm() + 1e-6, (name, k)


@pytest.mark.parametrize("family", [*FAMILIES, *REFUSED])
def test_what_cannot_carry_arms_is_known_before_a_weight_is_loaded(family: str) -> None:
    with torch.device("meta"):
        config = AutoConfig.for_model(family, **(FAMILIES | REFUSED)[family])
        model = AutoModelForCausalLM.from_config(config)
    reason = refuse_reason(model)
    if family in FAMILIES:
        assert reason is None
    else:
        assert reason is not None
        assert "cannot carry several arms" in reason
        with pytest.raises(ValueError, match="cannot carry several arms"):
            give_arm_axis(models(family, 1)[0], torch.device("cpu"))
